"""The options of bench/throughput.py, and what they are with all defaults filled in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from bench.peers import ours
from bench.program import check_positive
from bench.recipe_stages import DATA, Recipe, StageName
from bench.schema import RUNS
from fastpsl.engine.distributed import World
from fastpsl.engine.options import GraphName
from fastpsl.files.workers import default_num_threads
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.loader.augment import AugmentName
from fastpsl.pipelines.sample.betons import sample_paths


@dataclass(frozen=True, kw_only=True)
class Options:
    data: Annotated[str | None, DATA] = None
    recipe: tuple[Recipe, ...] = ("jigsaw",)
    """Whose stages; none, written as --recipe, for loaders alone."""
    stages: tuple[str, ...] = ("S1", "S2", "S3")
    """Of PSL, and E for end to end: of each --recipe, or of one as RECIPE:STAGE."""
    decoders: tuple[str, ...] | None = None
    """By name. Default: all but resident, that of `auto` first."""
    views: tuple[int, ...] = (1, 2)
    """Of loaders alone: crops of each sample, from one decode."""
    backbone: str | None = None
    """Default: the recipe's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    augment_backend: AugmentName = "auto"
    compile: Literal["auto", "off", "fused", "on"] = "auto"
    graph: GraphName = "auto"
    fold_frozen: bool = False
    batch_size: int | None = None
    """Default: 256 on CUDA, else 32."""
    workers: int | None = None
    """Decoding threads (DataLoader: processes). Default: the cores."""
    repeats: int | None = None
    """Default: 5, and 3 for the sample."""
    seconds: float | None = None
    """Length of a timed region; whole steps, one at least. Default: 3, and 0.2 for the sample."""
    epochs: float = 0.0
    """A timed region of a stage has so many epochs of the data at least."""
    limit_s: float | None = None
    """Each stage's repeats end with its share of this. Default: none, and 100 for the sample."""
    peers: bool = True
    """Loaders alone: ours and the peers', on equal footing."""
    out: Path = RUNS / "throughput.json"
    """The result; the bar chart stands beside it as .png."""

    def check(self) -> None:
        """Raise ValueError if an option is out of range.

        This is not done in __post_init__, because tyro would put a frame around the one-line error.
        """
        check_positive(self, "batch_size", "workers", "repeats", "seconds", "limit_s")
        if self.epochs < 0:
            raise ValueError(f"--epochs {self.epochs}: it must be 0 or more")
        if not (self.views and self.stages) or self.decoders == () or min(self.views) < 1:
            raise ValueError("--views, --decoders and --stages: give at least one of each, views from 1")
        for recipe, stage in self.pairs():
            if recipe not in get_args(Recipe) or stage not in get_args(StageName):
                raise ValueError(f"--stages {recipe}:{stage}: it must be RECIPE:STAGE, such as simclr:E")
        if not self.pairs() and not self.peers:
            raise ValueError("--recipe with no name and --no-peers: nothing is left to measure")

    def pairs(self) -> list[tuple[str, str]]:
        """Return the recipes and stages to be measured."""
        each = [stage for stage in self.stages if ":" not in stage]
        single = [(stage.partition(":")[0], stage.partition(":")[2]) for stage in self.stages if ":" in stage]
        return [(recipe, stage) for recipe in self.recipe for stage in each] + single


@dataclass(frozen=True)
class Setting:
    """The options with all defaults filled in."""

    options: Options
    world: World
    data: Beton
    path: str
    decoders: list[str]
    batch_size: int
    num_threads: int
    repeats: int
    seconds: float

    @property
    def is_sample(self) -> bool:
        return self.options.data is None


def fill_in(options: Options, world: World) -> tuple[Setting, list[dict[str, str]]]:
    """Fill in the defaults of the options, and return the decoders that cannot be measured with the reason.

    Raises:
        ValueError: No decoder is left, or one has an unknown name.
    """
    is_sample = options.data is None
    path = options.data or str(sample_paths().train)
    data = Beton(path)
    decoders: list[str] = []
    missing: list[dict[str, str]] = []
    for name in options.decoders or ours.decoder_names(data, world.device):
        if reason := ours.why_no_decoder(name, data, world.device):
            missing.append({"what": f"decoder {name}", "reason": reason})
        else:
            decoders.append(name)
    if not decoders:
        raise ValueError(f"--decoders {' '.join(options.decoders or ())}: {missing[0]['reason']}")
    setting = Setting(
        options, world, data, path, decoders,
        batch_size=options.batch_size or (256 if world.device.type == "cuda" else 32),
        num_threads=options.workers or default_num_threads(),
        repeats=options.repeats or (3 if is_sample else 5),
        seconds=options.seconds or (0.2 if is_sample else 3.0),
    )  # fmt: skip
    return setting, missing
