"""`fastpsl labels`: pseudo-labels of a network's features, or without a network."""

import io
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fastpsl.commands.features import RUN_HELP, Block, ExtractionOptions
from fastpsl.scripts.command_line import require_within

if TYPE_CHECKING:
    import numpy as np

    from fastpsl.pipelines.interface.dataset import Dataset

NUM_CLASSES = 70  # as in the paper for CIFAR-10 (SSL++, section V.E)
PCA_WIDTH, SIZE_PX = 64, 32  # of k-means


@dataclass(frozen=True)
class LabelExtraction(ExtractionOptions):
    """The options of the images and of the extraction of features that are clustered."""

    size_px: Annotated[int | None, tyro.conf.arg(metavar="PX")] = None
    """Of features: side of the middle that is cut from each image, as in `fastpsl features`. Of k-means: side
    to which the images' middle squares are resized. [of features, that of the run's images, or 224; of
    k-means 32]"""


@dataclass(frozen=True)
class MakeLabels:
    """Write a file of pseudo-labels for a recipe's --pseudo-labels: clusters of a network's features, or
    labels that were made without a network, for comparison.

    features: clusters of the features of --weights. k-means: clusters of the pixels. random: drawn by --seed.
    true: the true classes, for an ablation only: what learns from them is supervised.
    See https://fastpsl.github.io/fastpsl/evaluate/clusters.html.
    """

    source: tyro.conf.Positional[Literal["features", "k-means", "random", "true"]]
    """Where the labels come from."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.npz")]
    """The file to write."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """The training images: a dataset file, a quoted glob of shards, a folder of images or a list of them.
    [the embedded sample; of a run's features the run's training images]"""
    weights: Annotated[str | None, tyro.conf.arg(metavar="RUN", help=f"Of features: {RUN_HELP}")] = None
    block: Block = "final"
    num_clusters: Annotated[int | None, tyro.conf.arg(metavar="NUM")] = None
    """Clusters of features and of k-means, classes of random labels; true ones have their own. [70]"""
    pca_width: Annotated[int | None, tyro.conf.arg(metavar="NUM")] = None
    """Of k-means: principal components of the pixels that are clustered. [64]"""
    seed: int = 0
    """Seed of random labels, and of the clusters that features and k-means start from."""
    overwrite: bool = False
    """Replace FILE.npz, which is refused otherwise."""
    extraction: LabelExtraction = field(default_factory=LabelExtraction)
    """Of features: how they are computed. --range, --bands and --size-px are of k-means, too."""

    def run(self) -> None:
        """Write the file and print its figures; features under torchrun: every rank does its share."""
        self._check()
        make = self._of_features if self.source == "features" else self._of_no_network
        make()

    def _check(self) -> None:
        """Raise ValueError if a value is out of range, of another source, or FILE.npz cannot be written."""
        out, of_pixels = self.out, self.source != "features"
        require_within(
            ("--num-clusters", self.num_clusters, 2, 2**31 - 1),
            # At 64 px, the covariance of the pixels takes 1.2 GB.
            ("--size-px", self.extraction.size_px if of_pixels else None, 4, 64),
            ("--seed", self.seed, 0, 2**64 - 1),
        )
        if of_pixels:
            usual = vars(LabelExtraction()) | {"weights": None, "block": "final"}
            given = vars(self.extraction) | {"weights": self.weights, "block": self.block}
            for name, value in given.items():
                if value != usual[name] and name not in ("range", "bands", "size_px"):
                    raise ValueError(
                        f"--{name.replace('_', '-')} is for `fastpsl labels features`, and this is "
                        f"{self.source}; leave it out"
                    )
        elif self.pca_width is not None:
            raise ValueError(
                f"--pca-width {self.pca_width}: it is for the pixels of k-means, and features are clustered "
                "whole; leave it out"
            )
        elif self.weights is None:
            example = "runs/simclr or timm/resnet50"
            raise ValueError(f"`fastpsl labels features` needs a network: give --weights, such as {example}")
        if out.suffix != ".npz":
            raise ValueError(f"--out {out}: give a name that ends in .npz")
        if not out.parent.is_dir():
            raise ValueError(f"--out {out}: there is no folder {out.parent}; make it, or choose another")
        if out.exists() and not self.overwrite:
            raise ValueError(f"{out}: exists already; remove it, give --overwrite, or choose another name")

    def _of_features(self) -> None:
        from fastpsl.evaluation.feature_labels import feature_labels
        from fastpsl.tasks.pseudo_labels.baselines import require_images

        num_clusters = self.num_clusters or NUM_CLASSES
        assert self.weights is not None  # checked
        with self.extraction.of_images(self.weights, self.data, self.block, "float16") as (work, world):
            require_images(work.data, num_clusters, self.source)
            made = feature_labels(work, self.out.parent, num_clusters, self.seed, world)
            if world.rank == 0:
                print(f"features {made.features}")
                self._write(work.data, made.labels, num_clusters, made.made_by, made.configuration)

    def _of_no_network(self) -> None:
        from fastpsl.pipelines.datasets.open import open_data
        from fastpsl.pipelines.embedded.draw_sample import sample_paths
        from fastpsl.pipelines.interface.reading import Reading
        from fastpsl.tasks.pseudo_labels.baselines import make_labels

        num_classes = self.num_clusters
        if num_classes is None and self.source != "true":
            num_classes = NUM_CLASSES
        reading = Reading.of(self.extraction.range, self.extraction.bands)
        source = self.data if self.data is not None else sample_paths().train
        with closing(open_data(source, reading=reading)) as data:
            labels, num_classes, configuration = make_labels(
                self.source,
                data,
                num_classes=num_classes,
                pca_width=PCA_WIDTH if self.pca_width is None else self.pca_width,
                size_px=SIZE_PX if self.extraction.size_px is None else self.extraction.size_px,
                seed=self.seed,
            )
            self._write(data, labels, num_classes, f"fastpsl labels {self.source}", configuration)

    def _write(
        self,
        data: "Dataset",
        labels: "np.ndarray",
        num_classes: int,
        made_by: str,
        configuration: dict[str, Any],
    ) -> None:
        from fastpsl.evaluation.cluster_report import label_lines, measure
        from fastpsl.tasks.pseudo_labels.file import read_labels, write_labels

        write_labels(self.out, labels, num_classes, data, made_by, configuration=configuration)
        measured = measure(read_labels(self.out, data), data.labels(), self.seed)
        print("\n".join(label_lines(self.out, measured)))


@dataclass(frozen=True)
class Clusters:
    """Say what pseudo-labels are worth: NMI with the true labels and others, sizes and contents of the
    classes, a run's first filters.

    OUT gets result.json (for `fastpsl table`), sizes.png, contents.png and filters.png.
    See
    https://fastpsl.github.io/fastpsl/evaluate/clusters.html; for the forms of DATA,
    https://fastpsl.github.io/fastpsl/how_to/pack_a_dataset.html.
    """

    run_or_file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(name="run", metavar="RUN|FILE.npz")]]
    """The folder of a run that made pseudo-labels (UIC, DeepCluster, IIC), or a file of labels."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """What is labelled: a dataset file, a quoted glob of shards, a folder or a list of them. [the run's own
    --data; of FILE the embedded sample]"""
    labels: Annotated[Path | None, tyro.conf.arg(metavar="FILE.npz")] = None
    """Of a run: other labels of the same images. [RUN/labels.npz]"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The folder to write to. [RUN/clusters; FILE-clusters]"""
    seed: int = 0
    """Seed of the shuffled labels that NMI is compared with, and of the images that are shown."""
    require_labels: bool = False
    """Stop where the data has no true labels. Without, what needs them is left out."""
    backbone: Annotated[str | None, tyro.conf.arg(metavar="FILE.py:CLASS")] = None
    """Of a run with your own module: the module, as in the training."""

    def run(self) -> None:
        """Write the report and print its lines."""
        from fastpsl.evaluation.cluster_report import report

        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: it must be 0 or more")
        print("\n".join(report(**vars(self))))


@dataclass(frozen=True)
class Permutations:
    """Make a set of jigsaw permutations far from each other: integers [max(counts), pieces] from 0, in nested
    prefixes."""

    out: Annotated[Path, tyro.conf.arg(metavar="FILE.npy")]
    """The .npy file to write."""
    num_pieces: Annotated[int, tyro.conf.arg(metavar="NUM")] = 9
    """Tiles of a puzzle."""
    counts: Annotated[tuple[int, ...], tyro.conf.arg(metavar="NUM...")] = (500, 1000, 2000)
    """Sizes of the nested sets, rising: the first 500 rows are the first set, and so on."""
    overwrite: bool = False
    """Replace FILE.npy, which is refused otherwise."""

    def run(self) -> None:
        """Write the file and print the distances of each nested set."""
        import numpy as np

        from fastpsl.files.atomic import write_atomically
        from fastpsl.files.system_errors import output_errors
        from fastpsl.kernels.permutations import hamming_bound, mean_hamming, minimum_hamming, permutation_set

        if any(one >= other for one, other in zip(self.counts, self.counts[1:], strict=False)):
            raise ValueError(
                f"--counts {' '.join(map(str, self.counts))}: each set begins with the one before it; "
                "give rising numbers"
            )
        if self.out.exists() and not self.overwrite:
            raise ValueError(
                f"{self.out}: exists already; remove it, give --overwrite, or choose another name"
            )
        permutations = permutation_set(self.num_pieces, self.counts).permutations
        data = io.BytesIO()
        np.save(data, permutations.astype(np.int64))
        with output_errors(self.out):
            write_atomically(self.out, data.getvalue())
        print(f"{self.out}: {len(permutations):,} permutations of {self.num_pieces} pieces")
        print("  permutations   minimum distance   mean distance   bound of the mean")
        for count in self.counts:
            nested = permutations[:count]
            bound = hamming_bound(count, self.num_pieces)
            minimum, mean = minimum_hamming(nested), mean_hamming(nested)
            print(f"  {count:>12,}   {minimum:>16}   {mean:>13.4f}   {bound:>17.4f}")
