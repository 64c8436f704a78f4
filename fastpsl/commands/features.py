"""`fastpsl features`: one block's features of every sample of a data set, as a file.

They repeat a part of EvaluationOptions with help texts of their own, because importing it imports torch,
which is slow.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fastpsl.engine.options import DecoderName
from fastpsl.models.names import ANY_BACKBONE

if TYPE_CHECKING:
    from fastpsl.engine.distributed import World
    from fastpsl.evaluation.features import Extraction
    from fastpsl.evaluation.options import EvaluationOptions
    from fastpsl.evaluation.trained_run import TrainedRun

RUN_HELP = (
    "A run's folder (its newest checkpoint), a checkpoint, a file of `fastpsl export`, or "
    "others' weights: a file, timm/NAME[.TAG], or an address such as hf://ORG/NAME."
)
_RUN = tyro.conf.arg(metavar="RUN", help=RUN_HELP)
Run = tyro.conf.Positional[Annotated[str, _RUN]]
OptionalRun = tyro.conf.Positional[Annotated[str | None, _RUN]]
Block = Annotated[
    str,
    tyro.conf.arg(
        metavar="final|B1|B2..",
        help="Whose output is averaged over all positions; final is the last. Names such as fc7 serve as "
        "well.",
    ),
]
OutFolder = Annotated[
    Path | None,
    tyro.conf.arg(metavar="DIR", help="The folder to write to; by default a new numbered one under runs/."),
]
RandomWeights = Annotated[bool, tyro.conf.arg(help="Random weights of --backbone instead of RUN.")]


@dataclass(frozen=True)
class ExtractionOptions:
    """The options of the weights and the extraction of features."""

    size_px: Annotated[int | None, tyro.conf.arg(metavar="PX")] = None
    """Side of the middle that is cut from each image, whose shorter side becomes PX * 256 / 224. [that of
    the run's images or of timm's model; else 224]"""
    whole: bool = False
    """The shorter side becomes PX, so that small images are seen whole."""
    backbone: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="NAME", help=f"For others' weights, random ones and your own module: {ANY_BACKBONE}."
        ),
    ] = None
    input_channels: Literal["RGB", "L", "Sobel", "SobelXY"] | None = None
    """For weights of other projects: the channels that they were trained on."""
    input_mean: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="NUM...")] = None
    """For weights of other projects: mean subtracted from pixels in [0, 1], one value per channel."""
    input_std: Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="NUM...")] = None
    """For weights of other projects: the standard deviation that inputs were divided by."""
    range: Annotated[str | None, tyro.conf.arg(metavar="auto|LOW:HIGH")] = None
    """As in a recipe. [that of the run's images]"""
    bands: Annotated[str | None, tyro.conf.arg(metavar="N,N,N")] = None
    """As in a recipe. [those of the run's images]"""
    batch_size: Annotated[int, tyro.conf.arg(metavar="NUM")] = 256
    """Images of one pass, over all ranks."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: fp16 on CUDA, fp32 on the CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto is CUDA if there is a GPU."""
    decoder: DecoderName = "auto"
    """As in a recipe."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="NUM")] = None
    """Decoding threads per GPU."""
    on_bad_sample: Literal["raise", "skip"] = "raise"
    """A sample that cannot be decoded: stop, or leave it out (its row is NaN) and name it."""

    @contextmanager
    def joined(self, checkpoint: str | None, **more: Any) -> Iterator[tuple["EvaluationOptions", "World"]]:
        """Join torchrun's ranks and yield the evaluation's options, with `more` fields such as seed.

        Data that is None is the embedded sample's.
        """
        from fastpsl.engine.distributed import join_world, leave_world
        from fastpsl.evaluation.options import EvaluationOptions
        from fastpsl.scripts.recipe import require_paths

        if (checkpoint is not None) == more.get("random_weights", False):
            raise ValueError("give either RUN, or --random-weights and --backbone")
        if more.get("seed", 0) < 0:
            raise ValueError(f"--seed {more['seed']}: it must be 0 or more")
        given = {name: value for name, value in {**vars(self), **more}.items() if value is not None}
        options = EvaluationOptions(checkpoint=checkpoint, **given)
        require_paths(options)
        size = {} if self.size_px is not None else options.recorded_size()
        options = replace(options, **size)
        world = join_world(options.device, timeout_s=10 * options.timeout_s)
        try:
            yield options, world
        finally:
            leave_world()

    @contextmanager
    def of_images(
        self, weights: str, data: str | None, block: str, dtype: str
    ) -> Iterator[tuple["Extraction", "World"]]:
        """Join torchrun's ranks and yield the extraction from `data`.

        Data that is None is a run's training images, or the embedded sample's.
        """
        from fastpsl.engine.run import open_given
        from fastpsl.evaluation.features import Extraction
        from fastpsl.pipelines.embedded.draw_sample import sample_paths

        if data is None and (run := run_of(weights)):
            data = run.train_images()
        with self.joined(weights, data=data) as (options, world):
            pretrained = options.pretrained()
            with closing(open_given(options, sample_paths().train if data is None else data)) as images:
                yield Extraction.of(options, pretrained, images, block, world, dtype), world


def run_of(weights: str | None) -> "TrainedRun | None":
    """Return the run that weights belong to, or None."""
    from fastpsl.evaluation.trained_run import TrainedRun

    return None if weights is None else TrainedRun.of(weights)


@dataclass(frozen=True, kw_only=True)
class Features:
    """Write the average-pooled features of one block, of every sample, to a .npy file: float [N, C], row i is
    sample i.

    Beside F.npy: F.json tells what they are, F-labels.npy holds the labels. An interrupted one goes on where
    it was. On several GPUs: torchrun --no-python --nproc-per-node 8 -- fastpsl features ...
    """

    checkpoint: Run
    data: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """A dataset file, a quoted glob of shards, a folder or list of images
    (https://fastpsl.github.io/fastpsl/how_to/pack_a_dataset.html). [the run's training images]"""
    out: Annotated[Path, tyro.conf.arg(metavar="F.npy")]
    """The file to write."""
    block: Block = "final"
    dtype: Literal["float16", "float32"] = "float16"
    """Number format of the file."""
    overwrite: bool = False
    """Replace F.npy, which is refused otherwise."""
    extraction: ExtractionOptions = field(default_factory=ExtractionOptions)
    """How they are computed."""

    def run(self) -> None:
        """Write the file and print what it holds; under torchrun every rank does its share."""
        if self.out.suffix != ".npy":
            raise ValueError(f"--out {self.out}: give a name that ends in .npy")
        with self.extraction.of_images(self.checkpoint, self.data, self.block, self.dtype) as (work, world):
            work = replace(work, if_too_large="give --dtype float32, or another --block")
            written = work.to_file(self.out, world, overwrite=self.overwrite)
            if world.rank == 0:
                print(written)


@dataclass(frozen=True, kw_only=True)
class TSNE:
    """Draw images as points of the plane by t-SNE of their average-pooled features of one block, coloured by
    class.

    OUT gets tsne.png, tsne.npy (float32 [NUM, 2]), tsne-indices.npy (int64 [NUM], which images they are),
    result.json and the features, which serve again. See
    https://fastpsl.github.io/fastpsl/evaluate/retrieval.html; for the forms of DATA,
    https://fastpsl.github.io/fastpsl/how_to/pack_a_dataset.html.
    """

    checkpoint: OptionalRun = None
    data: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """A dataset file, a quoted glob of shards, a folder or a list of images. [the run's validation images]"""
    out: OutFolder = None
    block: Block = "final"
    num: Annotated[int, tyro.conf.arg(metavar="NUM")] = 1000
    """Images, drawn by --seed; all where there are fewer."""
    perplexity: Annotated[float | None, tyro.conf.arg(metavar="NUM")] = None
    """About how many neighbours each point has; less than the images.
    [30, or a third of the images]"""
    seed: int = 0
    """Seed of the drawn images, of t-SNE, and of random weights."""
    random_weights: RandomWeights = False
    extraction: ExtractionOptions = field(default_factory=ExtractionOptions)
    """How features are computed."""

    def run(self) -> None:
        """Write the map and print the figures; under torchrun every rank does its share."""
        from fastpsl.evaluation.tsne import make_map

        data, val = self.data, None
        if data is None and (run := run_of(self.checkpoint)):
            data, val = run.scored()
        with self.extraction.joined(
            self.checkpoint, data=data, val=val, out=self.out, seed=self.seed,
            random_weights=self.random_weights,
        ) as (options, world):  # fmt: skip
            for line in make_map(options, world, block=self.block, num=self.num, perplexity=self.perplexity):
                print(line)


@dataclass(frozen=True, kw_only=True)
class Retrieve:
    """Find the images of a gallery that are nearest to queries, by the cosine of the average-pooled features
    of one block.

    OUT gets retrieval.png (a query a line, its neighbours in falling similarity), result.json (for `fastpsl
    table`) and the features, which serve again. See
    https://fastpsl.github.io/fastpsl/evaluate/retrieval.html; for the forms of DATA,
    https://fastpsl.github.io/fastpsl/how_to/pack_a_dataset.html.
    """

    checkpoint: OptionalRun = None
    gallery: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """Where neighbours are looked for: a dataset file, a quoted glob of shards, a folder of images or a list
    of them. [the run's training images]"""
    queries: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """The query images, in the same forms. An image of the same data does not find itself. [the run's
    validation images]"""
    out: OutFolder = None
    block: Block = "final"
    k: Annotated[int, tyro.conf.arg(metavar="NUM")] = 8
    """Neighbours of each query."""
    num: Annotated[int, tyro.conf.arg(metavar="NUM")] = 16
    """Queries in the figure, drawn by --seed; all where there are fewer. The precision is of all queries in
    any case."""
    query_indices: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INDEX...")] = ()
    """Queries in the figure, from 0, instead of drawn ones."""
    seed: int = 0
    """Seed of the queries that are shown, and of random weights."""
    random_weights: RandomWeights = False
    floor: bool = True
    """Also search with the same network before any training. It takes as long again, once: the precision is
    kept in the cache."""
    extraction: ExtractionOptions = field(default_factory=ExtractionOptions)
    """How features are computed."""

    def run(self) -> None:
        """Write the neighbours and print the figures; under torchrun every rank does its share."""
        from fastpsl.evaluation.neighbours import retrieve
        from fastpsl.pipelines.embedded.draw_sample import sample_paths

        gallery, queries = self.gallery, self.queries
        if run := run_of(self.checkpoint):
            if queries is None:  # --val 10% is a part of the run's own images
                queries = (run.val_data if gallery else run.val_images)("give --queries")
            gallery = gallery or run.train_images("give --gallery")
        elif (gallery is None) != (queries is None):
            raise ValueError("--gallery and --queries: give both, or neither for the embedded sample")
        if gallery or queries:  # None is the embedded sample
            sample = sample_paths()
            gallery, queries = gallery or str(sample.train), queries or str(sample.test)
        with self.extraction.joined(
            self.checkpoint, data=gallery, val=queries, out=self.out, seed=self.seed,
            random_weights=self.random_weights,
        ) as (options, world):  # fmt: skip
            for line in retrieve(
                options, world, block=self.block, k=self.k, num=self.num, indices=self.query_indices,
                shows_floor=self.floor,
            ):  # fmt: skip
                print(line)
