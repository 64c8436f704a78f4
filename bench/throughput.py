"""The loader alone, the step alone, trained (both together), and their ratios: on one machine.

    python bench/throughput.py  the embedded sample, under two minutes on a CPU
    python bench/throughput.py --data 'imagenet/train-*.beton' --recipe jigsaw simclr

For each recipe and stage: its loader by decoder, its step (captured on a GPU) on synthetic data, and both
together, as users train. Then loaders alone on equal footing, with one random resized crop and two, beside
others. Writes a JSON, where "trained" is called "both", and a bar chart; see bench/README.md.
"""

import gc
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

# Spinning at barriers, libgomp's default, makes steps 10 times as long when another process uses the core: a
# bench on a shared machine would measure that process. torch reads this on import; results record it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # bench/ and recipes/ are folders of programs, not installed

from bench import interleaved, peers
from bench.charts import publish
from bench.peers import ours
from bench.program import check_positive, in_turn, options_of, progress, run_program
from bench.recipe_stages import (
    DATA,
    MIN_STEPS,
    LongEpochs,
    Recipe,
    StageName,
    recipe_options,
    stage_experiment,
)
from bench.schema import RUNS, data_record, environment, over, spread
from fastpsl.engine.distributed import World, join_world
from fastpsl.engine.gpu import synchronise
from fastpsl.engine.options import FoldName, GraphName
from fastpsl.files.workers import default_num_threads
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.embedded.draw_sample import sample_paths
from fastpsl.pipelines.loader.augment import AugmentName


@dataclass(frozen=True, kw_only=True)
class Options:
    data: Annotated[str | None, DATA] = None
    recipe: tuple[Recipe, ...] = field(default=("jigsaw",), metadata={"may_be_empty": True})
    """Whose stages; none, written as --recipe, for loaders alone."""
    stages: tuple[str, ...] = ("S1", "S2", "S3")
    """Of PSL, and E for end to end: of each --recipe, or of one as RECIPE:STAGE."""
    decoders: tuple[str, ...] | None = None  # By name. Default: all but resident, that of `auto` first.
    views: tuple[int, ...] = (1, 2)  # Of loaders alone: crops of each sample, from one decode.
    backbone: str | None = None  # Default: the recipe's.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    augment_backend: AugmentName = "auto"
    compile: Literal["auto", "off", "fused", "on"] = "auto"
    graph: GraphName = "auto"
    fold_frozen: FoldName = field(default="auto", metadata={"bare": "on"})
    batch_size: int | None = None  # Default: 256 on CUDA, else 32.
    workers: int | None = None  # Decoding threads (DataLoader: processes). Default: the cores.
    repeats: int | None = None  # Default: 5, and 3 for the sample.
    seconds: float | None = None
    """Length of a timed region; whole steps, one at least. Default: 3, and 0.2 for the sample."""
    epochs: float = 0.0  # A timed region of a stage has so many epochs of the data at least.
    limit_s: float | None = None
    """Each stage's repeats end with its share of this. Default: none, and 100 for the sample."""
    peers: bool = True  # Loaders alone: ours and the peers', on equal footing.
    out: Path = RUNS / "throughput.json"  # The result; the bar chart stands beside it as .png.

    def check(self) -> None:
        """Raise ValueError if an option is out of range; tyro would frame an error of __post_init__."""
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
    """Fill in the options' defaults, and return the decoders that cannot be measured, with the reason."""
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


def try_stage(
    recipe: str, stage: str, setting: Setting, deadline: float, log: Callable[[str], None]
) -> dict[str, list[Any]]:
    """Return the rows and ratios of `measure_stage`, or not_measured if GPU memory runs out; free it."""
    try:
        rows, ratios = measure_stage(recipe, stage, setting, deadline, log)
    except torch.cuda.OutOfMemoryError as error:
        why = f"out of GPU memory at batch {setting.batch_size}: {str(error).splitlines()[0]}"
        return {"not_measured": [{"what": f"{recipe} {stage}", "reason": why}]}
    finally:
        gc.collect()  # frees weights, graphs and loaders
        if setting.world.device.type == "cuda":
            torch.compiler.reset()
            torch.cuda.empty_cache()
    return {"rows": rows, "ratios": ratios}


def measure_stage(
    recipe: str, stage: str, setting: Setting, deadline: float, log: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure one stage: after a warm-up, loaders and both in turn, every other time in reverse order."""
    given = setting.options
    options = recipe_options(
        recipe, is_sample=setting.is_sample, batch_size=setting.batch_size, backbone=given.backbone,
        device=given.device, precision=given.precision, augment_backend=given.augment_backend,
        compile=given.compile, graph=given.graph, fold_frozen=given.fold_frozen, workers=setting.num_threads,
    )  # fmt: skip
    experiment, number = stage_experiment(recipe, stage, options, setting.world)
    bench = LongEpochs(experiment, number, options, setting.data, setting.world, seconds=setting.seconds)
    bench.min_steps = max(1, math.ceil(given.epochs * setting.data.num_samples / bench.batch_size))
    work: dict[tuple[str, str | None], Callable[[], float]] = {("step", None): bench.step_alone}
    for decoder in setting.decoders:
        work["loader", decoder] = partial(bench.loader_alone, decoder)
        work["both", decoder] = partial(bench.both, decoder)
    what = f"{recipe} {stage}"
    log(f"{what}: warming up")
    # The warm-up compiles or captures the step, and settles cuDNN's choices and numba.
    bench.seconds, steps, bench.min_steps = 0.0, bench.min_steps, 3
    for (measured, _), run in work.items():
        if measured != "both":  # "both" consists of the others
            run()
    bench.seconds, bench.min_steps = setting.seconds, steps
    first_batch_s = {decoder: _first_batch_s(bench, decoder) for decoder in setting.decoders}
    rates: dict[Any, list[float]] = {key: [] for key in work}
    cores: dict[Any, list[float]] = {key: [] for key in work}
    memory_gb: dict[Any, float] = {}
    for key in in_turn(work, setting.repeats, log, f"{what}: ", deadline):
        rates[key].append(work[key]())
        cores[key].append(bench.cores_used)
        memory_gb[key] = max(memory_gb.get(key, 0.0), _memory_gb(setting.world))
    labels = {"recipe": recipe, "stage": stage, "num_views": len(bench.views)}
    rows, ratios = [], []
    for key, values in rates.items():
        measured, decoder = key
        row: dict[str, Any] = {"measured": measured, "decoder": decoder, **labels, "unit": "samples/s"}
        row["cores_used"] = round(statistics.median(cores[key]), 3)
        if measured == "loader":
            row["first_batch_s"] = round(first_batch_s[decoder], 3)
        else:
            row["augment"], row["step"] = bench.train_step.augment.path, bench.train_step.step_choice.mode
            row["graph"] = "on" if bench.is_captured else "off"
            row["samples_per_step"], row["epochs"] = bench.batch_size, bench.stage.epochs
            row["inputs_per_image"] = experiment.task.inputs_per_image(bench.stage.level)
        if measured == "both":
            # The loader's cores while it keeps up with the step.
            pairs = zip(cores[key], cores["step", None], strict=True)
            row["cores_beyond_step"] = round(statistics.median(both - step for both, step in pairs), 3)
            row["num_steps"] = bench.min_steps
            step = rates["step", None]
            slower = list(map(min, rates["loader", decoder], step))
            for what, base in (("both / min(loader, step)", slower), ("both / step", step)):
                ratios.append({"what": what, "decoder": decoder, **labels, **over(values, base)})
        if setting.world.device.type == "cuda":
            row["gpu_memory_gb"] = round(memory_gb[key], 2)
        rows.append(row | spread(values))
    return rows, ratios


def _first_batch_s(bench: LongEpochs, decoder: str) -> float:
    """Return the seconds from opening the loader, with all code compiled, to its first batch."""
    started = time.perf_counter()
    with bench.loader(decoder) as loader:
        batches = loader.epoch(0)
        next(batches)
        synchronise(bench.world.device)
        seconds = time.perf_counter() - started
        batches.close()
    return seconds


def _memory_gb(world: World) -> float:
    """Return the memory in use on the device by torch, DALI and everything else."""
    if world.device.type != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info(world.device)
    return (total - free) / 1e9


def measure(setting: Setting, files: Path, log: Callable[[str], None]) -> dict[str, Any]:
    """Measure all stages, then loaders alone; `files` is an empty folder for peers that need files."""
    options, start = setting.options, time.perf_counter()
    limit_s = options.limit_s or (100.0 if setting.is_sample else math.inf)
    stages = options.pairs()
    num_parts = len(stages) + options.peers
    result: dict[str, Any] = {"rows": [], "ratios": [], "not_measured": [], "notes": []}
    for index, (recipe, stage) in enumerate(stages):
        # Time that earlier parts have left is shared by the later ones.
        left_s = limit_s - (time.perf_counter() - start)
        deadline = time.perf_counter() + left_s / (num_parts - index)
        for part, entries in try_stage(recipe, stage, setting, deadline, log).items():
            result[part] += entries
    works = {f"decoder {name}": _work(name, setting, files) for name in setting.decoders}
    for kind in peers.PEERS:
        title = peers.TITLES[kind]
        if reason := peers.why_missing(kind, setting.path) if options.peers else "left out by --no-peers":
            result["not_measured"].append({"what": title, "reason": reason})
        else:
            works[title] = _work(kind, setting, files)
    if options.peers:
        rates, missing, notes = interleaved.measure(
            works,
            options.views,
            repeats=setting.repeats,
            seconds=setting.seconds,
            deadline=start + limit_s,
            log=log,
        )
        crop = {"stage": None, "crop": "RandomResizedCrop"}
        result["rows"] += [each.row(each.measured, **crop) for each in rates]
        result["not_measured"] += missing
        result["notes"] += notes
    if any(len(row["values"]) < setting.repeats for row in result["rows"]):
        result["notes"].append(
            f"fewer than {setting.repeats} repeats where the machine was slow: --limit-s {limit_s:g} is kept"
        )
    return result


def _work(kind: str, setting: Setting, files: Path) -> peers.Work:
    size_px = 96 if setting.is_sample else 224
    return peers.Work(
        kind, setting.path, str(files), setting.batch_size, setting.num_threads, size_px,
        str(setting.world.device)
    )  # fmt: skip


def main() -> None:
    options = options_of(Options, __doc__)
    world = join_world(options.device, timeout_s=600)
    machine = environment(world.device)
    setting, missing = fill_in(options, world)
    with progress() as log, tempfile.TemporaryDirectory(prefix="fastpsl-bench-") as files:
        parts = measure(setting, Path(files), log)
    parts["not_measured"] = missing + parts["not_measured"]
    of_first = recipe_options(
        (options.recipe or ("jigsaw",))[0], is_sample=setting.is_sample, batch_size=setting.batch_size,
        backbone=options.backbone, precision=options.precision,
    )  # fmt: skip
    publish(
        options.out, "throughput", machine,
        "recipe stage decoder num_views cores_used cores_beyond_step first_batch_s",
        data=data_record(setting.data, options.data),
        settings={
            "repeats": setting.repeats, "seconds": setting.seconds, "epochs": options.epochs,
            "batch_size": setting.batch_size, "num_threads": setting.num_threads,
            "backbone": options.backbone,
            "precision": of_first.resolved_precision(world.device),
            "device": world.device.type, "augment": options.augment_backend,
            "step": options.compile, "graph": options.graph, "min_steps_of_an_epoch": MIN_STEPS,
            "fold_frozen": options.fold_frozen,
            "values": "SAMPLE" if setting.is_sample else "PAPER",
            "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"],
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        },
        **parts,
    )  # fmt: skip
    setting.data.close()


if __name__ == "__main__":
    run_program(main)
