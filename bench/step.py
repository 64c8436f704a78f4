"""How long a training step takes, by recipe, stage and mode; its GPU memory; PSL over end to end.

    python bench/step.py  the papers' values on a GPU; on a CPU two recipes, small, eager and compiled
    python bench/step.py --recipes rotation --backbone resnet50 --modes eager compiled --graph on

The step is the trainer's, on a batch that lies on the device. Each mode is measured launched (--graph off)
and captured as one CUDA graph (--graph on). Modes: --compile's, and with `+fold` --fold-frozen. PSL's cost
per epoch over end to end's, at one mode: the stages' seconds per sample, weighted by their epochs. Beside it
the same by multiply-adds, counted by torch: the floor. See bench/README.md.
"""

import gc
import itertools
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch comes: see throughput.py

import torch
from torch.utils.flop_counter import FlopCounterMode

# bench/ and recipes/ are folders of programs, not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.charts import publish
from bench.program import check_positive, in_turn, options_of, progress, run_program
from bench.recipe_stages import Recipe, StageName, recipe_options, stage_experiment
from bench.schema import RUNS, environment, over, spread
from fastpsl.engine.distributed import World, join_world
from fastpsl.engine.gpu import synchronise
from fastpsl.engine.stage_bench import StageBench
from fastpsl.pipelines.datasets.subset import Synthetic

Mode = Literal["eager", "fused", "compiled", "eager+fold", "fused+fold", "compiled+fold"]
_LEFT_S = 30.0  # assumed seconds of a stage's first steps and repeats
COST = "PSL's cost per epoch / end to end's"
FLOOR = "PSL's multiply-adds per epoch / end to end's"
GAIN = "eager's ms / the mode's"
CAPTURE = "launched ms / captured ms"
MEMORY = "RevNet-50's peak memory / ResNet-50's"


@dataclass(frozen=True, kw_only=True)
class Options:
    recipes: tuple[Recipe, ...] | None = None
    """Default: rotation, jigsaw, simclr and moco on CUDA, else rotation and jigsaw."""
    stages: tuple[StageName, ...] = ("E", "S1", "S2", "S3")
    modes: tuple[Mode, ...] | None = None  # Default: all on CUDA, else eager, and compiled for one stage.
    graph: tuple[Literal["off", "on"], ...] | None = None
    """off: each mode launched; on: captured. Default: both on CUDA, else off."""
    backbone: str | None = None  # Any of fastpsl's. Default: resnet50 on CUDA, else resnet18.
    revnet: bool = True  # RevNet-50, eager, beside ResNet-50's memory, for the first recipe on CUDA.
    batch_size: int | None = None  # Default: 256 on CUDA, else 8.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    repeats: int | None = None  # Default: 7 on CUDA, else 3.
    limit_s: float | None = None
    """No stage begins after so many seconds, and no mode is compiled. Default: 400 on CUDA, else 80."""
    out: Path = RUNS / "step.json"  # The result.

    def check(self) -> None:
        """Raise ValueError if an option is out of range or a list is empty."""
        check_positive(self, "batch_size", "repeats", "limit_s")
        for name in ("recipes", "stages", "modes", "graph"):
            if getattr(self, name) == ():
                raise ValueError(f"--{name}: give one at least")


@dataclass(frozen=True)
class Key:
    """A measured combination of recipe, stage, backbone, mode and --graph (on: captured)."""

    recipe: str
    stage: str
    backbone: str
    mode: str
    graph: str = "off"

    @property
    def is_plain(self) -> bool:
        return (self.mode, self.graph) == ("eager", "off")

    @property
    def launch(self) -> str:
        """ "captured" or "launched"."""
        return "captured" if self.graph == "on" else "launched"


@dataclass
class Timed:
    """One measured mode of a stage."""

    bench: StageBench | None
    samples: int
    epochs: int
    first_step_s: float = 0.0  # seconds until the usual steps: the first ones, with compilation and capture
    ms: list[float] = field(default_factory=list)  # milliseconds per step, one value per repeat
    eager_ms: list[float] = field(default_factory=list)  # of the launched eager mode, measured in turn
    peak_bytes: int = 0
    multiply_adds: int = 0  # multiply-adds per step, counted in the launched eager mode only
    launched_ms: list[float] = field(default_factory=list)  # as eager_ms, of this mode launched


class Bench:
    """The measurements of one run of the program."""

    def __init__(self, options: Options, world: World):
        self.options, self.world = options, world
        self.is_cuda = world.device.type == "cuda"
        self.recipes = options.recipes or (
            ("rotation", "jigsaw", "simclr", "moco") if self.is_cuda else ("rotation", "jigsaw")
        )
        self.graphs = options.graph or (("off", "on") if self.is_cuda else ("off",))
        self.backbone = options.backbone or ("resnet50" if self.is_cuda else "resnet18")
        self.batch_size = options.batch_size or (256 if self.is_cuda else 8)
        self.repeats = options.repeats or (7 if self.is_cuda else 3)
        self.steps = 5 if self.is_cuda else 1  # steps per repeat
        self.limit_s = options.limit_s or (400.0 if self.is_cuda else 80.0)
        self.started = time.perf_counter()
        self.timed: dict[Key, Timed] = {}
        self.missing: list[dict[str, str]] = []
        self.precision = ""

    def groups(self) -> Iterator[list[Key]]:
        """Yield the groups of keys that are measured in turn, the most informative first.

        A group holds the modes of one stage of one recipe, launched and captured. The time limit may cut off
        the last groups.
        """
        stages, first = self.options.stages, self.recipes[0]
        if self.options.modes is not None:
            passes = [self.options.modes]
        elif self.is_cuda:
            passes = [("eager", "fused", "fused+fold"), ("eager", "eager+fold", "compiled", "compiled+fold")]
        else:
            passes = [("eager",)]
        for number, modes in enumerate(passes):
            for recipe in self.recipes:
                for stage in stages:
                    both = itertools.product(modes, self.graphs)
                    yield [Key(recipe, stage, self.backbone, mode, graph) for mode, graph in both]
                with_revnet = self.is_cuda and self.options.revnet and self.backbone == "resnet50"
                if with_revnet and number == 0 and recipe == first:
                    yield from ([Key(first, stage, "revnet50", "eager")] for stage in stages)
        if self.options.modes is None and not self.is_cuda:
            stage = stages[min(2, len(stages) - 1)]
            yield [Key(first, stage, self.backbone, mode) for mode in ("eager", "compiled")]

    def seconds_left(self) -> float:
        """Return the seconds that are left of --limit-s."""
        return self.limit_s - (time.perf_counter() - self.started)

    def measure(self, keys: Sequence[Key], log: Any) -> None:
        """Measure all modes of one stage, interleaved, and record those that cannot be measured."""
        stage = f"{keys[0].recipe} {keys[0].stage} {keys[0].backbone}"
        if self.timed and self.seconds_left() < _LEFT_S / (1 if self.is_cuda else 10):
            self._leave_out(stage, f"no time left of --limit-s {self.limit_s:g}")
            return
        timed_by_key: dict[Key, Timed] = {}
        longest_s = 0.0
        for key in keys:
            what = f"{stage} {key.mode}, {key.launch}"
            log(f"{what}, first step")
            if timed_by_key and self.seconds_left() < longest_s:
                self._leave_out(what, f"no time left of --limit-s {self.limit_s:g}")
                continue
            try:
                timed = self._first_step(key)
            except ValueError as error:
                self._leave_out(what, str(error))
            except torch.OutOfMemoryError:
                self._leave_out(what, "out of GPU memory")
            except RuntimeError as error:
                if key.is_plain:
                    raise
                self._leave_out(what, f"failed: {str(error)[:200]}")
            else:
                if timed:
                    timed_by_key[key] = timed
                    longest_s = max(longest_s, timed.first_step_s)
        for timed in in_turn(timed_by_key.values(), self.repeats, log, f"{stage}: "):
            assert timed.bench is not None
            timed.ms.append(statistics.median(timed.bench.step_ms(self.steps)))
        ms = {key: timed.ms for key, timed in timed_by_key.items()}
        for key, timed in timed_by_key.items():
            timed.bench = None
            timed.eager_ms = ms.get(replace(key, mode="eager", graph="off"), [])
            timed.launched_ms = ms.get(replace(key, graph="off"), [])
            self.timed.setdefault(key, timed)
        gc.collect()  # frees compiled code and the memory of CUDA graphs
        torch.compiler.reset()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def _first_step(self, key: Key) -> Timed | None:
        """Run a mode's first steps, which compile or capture it; return None if folding changes nothing."""
        step, _, fold = key.mode.partition("+")
        options = recipe_options(
            key.recipe, is_sample=not self.is_cuda, batch_size=self.batch_size, backbone=key.backbone,
            compile={"eager": "off", "compiled": "on"}.get(step, step), graph=key.graph,
            fold_frozen="on" if fold else "off",
            device=self.world.device.type, precision=self.options.precision,
        )  # fmt: skip
        self.precision = options.resolved_precision(self.world.device)
        experiment, number = stage_experiment(key.recipe, key.stage, options, self.world)
        stage = experiment.stages[number]
        if fold and stage.first_learning == 1:
            return None
        before_bytes = self._memory(key)
        bench = StageBench(experiment, number, options, Synthetic(100_000), self.world)
        timed = Timed(bench, bench.batch_size * options.accumulate, stage.epochs)
        bench.synthetic_batch()
        started = time.perf_counter()
        bench.warm_up()
        if key.is_plain:
            with FlopCounterMode(display=False) as flops:
                bench.step_ms(1)
            # FlopCounterMode has counted two steps, with two operations per multiply-add.
            timed.multiply_adds = flops.get_total_flops() // 4
        else:
            bench.step_ms(1)
        synchronise(self.world.device)
        timed.first_step_s = time.perf_counter() - started
        if self.is_cuda:
            # The peak of a usual step: without compilation or cuDNN's search, less the memory that the
            # stage's other modes hold.
            torch.cuda.reset_peak_memory_stats(self.world.device)
            bench.step_ms(1)
            timed.peak_bytes = self._memory(key, peak=True) - before_bytes
        return timed

    def _memory(self, key: Key, peak: bool = False) -> int:
        """Return GPU bytes in use, or those reserved if captured: a graph's pool counts as free."""
        if not self.is_cuda:
            return 0
        if key.graph == "on":
            torch.cuda.empty_cache()
            return torch.cuda.memory_reserved(self.world.device)
        read = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
        return read(self.world.device)

    def _leave_out(self, what: str, reason: str) -> None:
        self.missing.append({"what": what, "reason": " ".join(reason.split())})


def rows_of(timed: Mapping[Key, Timed]) -> list[dict[str, Any]]:
    """Return one row per mode; samples/s follow from the median."""
    return [
        {
            "measured": "step", "recipe": key.recipe, "stage": key.stage, "backbone": key.backbone,
            "mode": key.mode, "graph": key.graph, "unit": "ms", "samples_per_step": entry.samples,
            "samples_per_s": round(1e3 * entry.samples / statistics.median(entry.ms), 1),
            "first_step_s": round(entry.first_step_s, 2), "peak_mib": round(entry.peak_bytes / 2**20) or None,
            "gmac_per_sample": round(entry.multiply_adds / entry.samples / 1e9, 3) or None,
            **spread(entry.ms),
        }
        for key, entry in timed.items()
    ]  # fmt: skip


def ratios_of(timed: Mapping[Key, Timed]) -> list[dict[str, Any]]:
    """Return the ratios: gains over eager and of capture, PSL's cost and its floor, RevNet's memory."""
    ratios: list[dict[str, Any]] = []

    def add(what: str, key: Key, values: dict[str, Any], stage: str | None) -> None:
        labels = {"recipe": key.recipe, "stage": stage, "backbone": key.backbone, "mode": key.mode}
        ratios.append({"what": what, **labels, "graph": key.graph, **values})

    for key, entry in timed.items():
        if not key.is_plain and entry.eager_ms:
            add(GAIN, key, over(entry.eager_ms, entry.ms), key.stage)
        if key.graph == "on" and entry.launched_ms:
            add(CAPTURE, key, over(entry.launched_ms, entry.ms), key.stage)
        other = timed.get(Key(key.recipe, key.stage, "resnet50", "eager"))
        if key.backbone == "revnet50" and other and other.peak_bytes:
            add(MEMORY, key, spread([entry.peak_bytes / other.peak_bytes] * len(entry.ms)), key.stage)
    for key in list(dict.fromkeys(replace(key, stage="E") for key in timed)):
        timed_stages = {stage: _at(timed, key, stage) for stage in ("E", "S1", "S2", "S3")}
        psl_stages = [timed_stages[stage] for stage in ("S1", "S2", "S3")]
        end_to_end = timed_stages["E"]
        if end_to_end is None or None in psl_stages:
            continue
        stages = [stage for stage in psl_stages if stage is not None]
        epochs = sum(stage.epochs for stage in stages)
        costs = []
        for number, ms in enumerate(end_to_end.ms):
            psl = sum(stage.epochs * stage.ms[number] / stage.samples for stage in stages) / epochs
            costs.append(psl / (ms / end_to_end.samples))
        add(COST, key, spread(costs), None)
        if key.is_plain:
            floor = sum(stage.epochs * stage.multiply_adds / stage.samples for stage in stages) / epochs
            of_end_to_end = end_to_end.multiply_adds / end_to_end.samples
            add(FLOOR, key, spread([floor / of_end_to_end] * len(costs)), None)
    return ratios


def _at(timed: Mapping[Key, Timed], key: Key, stage: str) -> Timed | None:
    """Return `stage` in the mode of `key`, without folding if the stage has no frozen blocks."""
    folded = replace(key, stage=stage)
    return timed.get(folded) or timed.get(replace(folded, mode=key.mode.partition("+")[0]))


def main() -> None:
    options = options_of(Options, __doc__)
    world = join_world(options.device, timeout_s=600.0)
    machine = environment(world.device)
    bench = Bench(options, world)
    with progress() as log:
        for keys in bench.groups():
            bench.measure(keys, log)
    publish(
        options.out, "step", machine, "recipe stage backbone mode graph samples_per_s first_step_s peak_mib",
        data={"name": "noise on the device", "num_samples": bench.batch_size},
        settings={
            "repeats": bench.repeats, "steps_per_repeat": bench.steps, "batch_size": bench.batch_size,
            "precision": bench.precision,
            "device": world.device.type, "backbone": bench.backbone, "recipes": list(bench.recipes),
            "stages": list(options.stages),
            "limit_s": bench.limit_s, "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"],
        },
        rows=rows_of(bench.timed), ratios=ratios_of(bench.timed), not_measured=bench.missing,
    )  # fmt: skip


if __name__ == "__main__":
    run_program(main)
