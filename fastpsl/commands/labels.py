"""`fastpsl labels`: pseudo-labels without a network."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

NUM_CLASSES = 70  # as in the paper for CIFAR-10 (SSL++, section V.E)


@dataclass(frozen=True)
class MakeLabels:
    """Write a file of pseudo-labels that no network made, for a recipe's --pseudo-labels: what
    learned ones are compared with.

    k-means: clusters of the pixels. random: drawn by --seed. true: the true classes, for an ablation only:
    what learns from them is supervised. See https://fastpsl.github.io/fastpsl/how_to/evaluate/clusters.html.
    """

    source: tyro.conf.Positional[
        Annotated[Literal["k-means", "random", "true"], tyro.conf.arg(metavar="k-means|random|true")]
    ]
    """Where the labels come from."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.npz")]
    """The file to write."""
    data: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="DATA",
            help="The training images: a dataset file, a quoted glob of shards, a folder of images or a list "
            "of them. [the embedded sample]",
        ),
    ] = None
    num_clusters: Annotated[int | None, tyro.conf.arg(metavar="NUM")] = None
    """Clusters of k-means, classes of random labels; true ones have their own. [70]"""
    pca_width: Annotated[int, tyro.conf.arg(metavar="NUM")] = 64
    """Of k-means: principal components of the pixels that are clustered."""
    size_px: Annotated[int, tyro.conf.arg(metavar="PX")] = 32
    """Of k-means: side to which the images' middle squares are resized."""
    seed: int = 0
    """Of random labels, and of the clusters that k-means starts from."""
    overwrite: bool = False
    """Replace FILE.npz, which is refused otherwise."""

    def run(self) -> None:
        """Write the file and print its figures.

        Raises:
            ValueError: A number is out of range, or the file cannot be written.
        """
        from fastpsl.evaluation.cluster_report import label_lines, measure
        from fastpsl.pipelines.datasets.open import open_data
        from fastpsl.pipelines.sample.betons import sample_paths
        from fastpsl.tasks.pseudo_labels.baselines import make_labels
        from fastpsl.tasks.pseudo_labels.file import read_labels, write_labels

        out, num_classes = self.out, self.num_clusters
        if num_classes is None and self.source != "true":
            num_classes = NUM_CLASSES
        for name, value, low, high in (
            ("--num-clusters", num_classes, 2, 2**31 - 1),
            ("--size-px", self.size_px, 4, 64),  # at 64 px, the covariance of the pixels takes 1.2 GB
            ("--seed", self.seed, 0, 2**64 - 1),
        ):
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} {value}: give a number from {low} to {high}")
        if out.suffix != ".npz":
            raise ValueError(f"--out {out}: give a name that ends in .npz")
        if not out.parent.is_dir():
            raise ValueError(f"--out {out}: there is no folder {out.parent}; make it, or choose another")
        if out.exists() and not self.overwrite:
            raise ValueError(f"{out}: exists already; remove it, give --overwrite, or choose another name")
        with closing(open_data(self.data if self.data is not None else sample_paths().train)) as data:
            labels, num_classes, configuration = make_labels(
                self.source,
                data,
                num_classes=num_classes,
                pca_width=self.pca_width,
                size_px=self.size_px,
                seed=self.seed,
            )
            made_by = f"fastpsl labels {self.source}"
            write_labels(out, labels, num_classes, data, made_by, configuration=configuration)
            measured = measure(read_labels(out, data), data.labels(), self.seed)
        print("\n".join(label_lines(out, measured)))
