"""Seconds of training to a validation accuracy, by several seeds.

    python bench/time_to_accuracy.py --data cifar-train.beton --val cifar-test.beton
    python bench/time_to_accuracy.py  the embedded sample at 32 px: shows that it works, and no more

A whole run of the recipe as `recipes/` trains it, cut to ResNet-18, small images and CIFAR's length. The
online monitor looks after each epoch (docs/how_to/monitoring.md): nearest neighbours.

The clock starts when the data is open and the weights are drawn. Loaders, compiling, first batches,
checkpoints, passes for labels, and the validation pass at a stage's end are on it. The looks are not. A
target counts from the end of the epoch after which the accuracy was first reached. Writes a JSON.
"""

import contextlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, partialmethod
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch comes: see throughput.py

import numpy as np
import torch
from numpy.typing import NDArray

# bench/ and recipes/ are folders of programs, not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.charts import publish
from bench.program import counted, options_of, progress, run_program
from bench.recipe_stages import MODULES, recipe_of, recipe_options
from bench.schema import RUNS, data_record, environment, spread
from fastpsl.engine.distributed import World, join_world
from fastpsl.engine.gpu import synchronise, torch_seed
from fastpsl.engine.online_probe import OnlineProbe
from fastpsl.engine.options import PretrainOptions
from fastpsl.engine.run import Run
from fastpsl.engine.trainer import pretrain
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.embedded.draw_sample import sample_paths

# For images of 32 px, enlarged twofold: ResNet-18's stem divides by four, so that B5 of 32 px would be one
# pixel.
VALUES: dict[str, dict[str, Any]] = {
    "rotation": {
        "backbone": "resnet18", "epochs": (10, 10, 10), "lr": 0.1, "intervals": (3, 1, 1),
        "short_side": 72, "size_px": 64, "rotations_per_image": "all",
        "levels": (1, 2, 2),  # rotations by 45 degrees need images of 53 px
    },
    "simclr": {
        "backbone": "resnet18", "epochs": (10, 15, 15), "lr": 0.4, "warmup_epochs": 1.0, "trust": 0.01,
        "temperature": 0.2, "size_px": 64,
    },
}  # fmt: skip
BATCH_SIZE = {"rotation": 256, "simclr": 512}  # images per step; rotation shows two or four turns of each
SAMPLE: dict[str, Any] = {"epochs": (1, 1, 1), "short_side": 36, "size_px": 32}
ACCURACIES = tuple(round(0.3 + 0.05 * step, 2) for step in range(11))  # 30 to 80 %


@dataclass(frozen=True, kw_only=True)
class Options:
    data: str | None = None
    """Labelled training images; without it: the embedded sample at 32 px, one epoch per stage."""
    val: str | None = None  # Validation images of the same classes.
    recipe: Literal["rotation", "simclr"] = "rotation"
    plan: Literal["psl", "end_to_end"] = "psl"
    accuracy: float = 0.5  # The target that is stated, in (0, 1); 30, 35, ... 80 % are recorded besides.
    seeds: tuple[int, ...] = (0, 1, 2)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    limit_s: float = math.inf  # No further seed begins when it would end later than this.
    out: Path = RUNS / "time_to_accuracy.json"

    def check(self) -> None:
        """Raise ValueError if options are out of range or contradict each other."""
        if not 0 < self.accuracy < 1:
            raise ValueError(f"--accuracy {self.accuracy:g}: it must be between 0 and 1")
        if not self.seeds:
            raise ValueError("--seeds: give one at least")
        if (self.data is None) != (self.val is None):
            raise ValueError("--data and --val: give both, or neither for the embedded sample")


@contextlib.contextmanager
def clock_of_looks(device: torch.device) -> Iterator[list[dict[str, float]]]:
    """Yield the seconds and CPU seconds of training before each look of the monitor, which does not count."""
    at_looks: list[dict[str, float]] = []
    start, look, look_untrained = _now(), OnlineProbe.look, OnlineProbe.look_untrained

    def off_the_clock(look: Callable[..., bool], *arguments: Any) -> bool:
        nonlocal start
        synchronise(device)
        began = _now()
        if look is not look_untrained:
            at_looks.append(dict(zip(("seconds", "cpu_seconds"), (began - start).tolist(), strict=True)))
        has_looked = look(*arguments)
        start += _now() - began
        return has_looked

    with (
        mock.patch.object(OnlineProbe, "look", partialmethod(partial(off_the_clock, look))),
        mock.patch.object(
            OnlineProbe, "look_untrained", partialmethod(partial(off_the_clock, look_untrained))
        ),
    ):
        yield at_looks


def _now() -> NDArray[np.float64]:
    return np.array([time.perf_counter(), time.process_time()])


class Trained(NamedTuple):
    """The run of one seed."""

    looks: list[dict[str, Any]]  # stage, epoch, seconds of training and accuracy of each measurement
    whole_s: float  # seconds of the whole run, measurements of the accuracy included
    num_steps: int


def timed(name: str, options: PretrainOptions, world: World) -> Trained | None:
    """Train a recipe with --probe-every into a new folder; return None if a signal stopped it."""
    started = time.perf_counter()
    torch.manual_seed(torch_seed(options.seed))
    experiment = recipe_of(name).build(options)
    run = Run(name, experiment.open_data(options, world), experiment.science)
    try:
        with clock_of_looks(world.device) as at_looks:
            if not pretrain(experiment, run):
                return None
    finally:
        run.close()
    assert options.out is not None
    lines = map(json.loads, (options.out / "probe.jsonl").read_text().splitlines())
    trained = [line for line in lines if line["run_step"]]  # the others are of the untrained network
    looks = [look_of(line) | at for line, at in zip(trained, at_looks, strict=True)]
    return Trained(looks, time.perf_counter() - started, run.position.run_step)


def look_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return stage, epoch and accuracy of a line of probe.jsonl; 0 if its features are not finite."""
    return {"stage": line["stage"], "epoch": line["epoch"], "accuracy": line["knn_accuracy"] or 0.0}


def seconds_to(looks: Sequence[Mapping[str, Any]], accuracy: float) -> float | None:
    """Return the seconds of training until `accuracy` is first measured, or None if it is never reached."""
    return next((look["seconds"] for look in looks if look["accuracy"] >= accuracy), None)


def tabulate(runs: list[Trained], options: Options) -> dict[str, Any]:
    """Return rows, ratios and not_measured: seconds to accuracies and of training, accuracy by epoch."""

    def row(measured: str, unit: str, values: Sequence[float], **labels: Any) -> dict[str, Any]:
        of_all = {"recipe": options.recipe, "monitor": "knn", "epoch": None, "num_reached": len(runs)}
        # max(), because a row's values must be above 0.
        spread_of = spread([max(value, 1e-6) for value in values])
        accuracy = {"accuracy": spread_of["median"]} if unit == "share" else {}
        return {"measured": measured, **of_all, **accuracy, **labels, "unit": unit, **spread_of}

    rows: list[dict[str, Any]] = []
    missing: list[dict[str, str]] = []
    for accuracy in sorted({*ACCURACIES, options.accuracy}):
        times = [seconds for each in runs if (seconds := seconds_to(each.looks, accuracy)) is not None]
        if times:
            rows.append(row("seconds to accuracy", "s", times, accuracy=accuracy, num_reached=len(times)))
        if len(times) < len(runs) and accuracy == options.accuracy:
            num_seeds = f"{len(runs) - len(times)} of {counted(len(runs), 'seed')}"
            best = max(look["accuracy"] for each in runs for look in each.looks)
            missing.append({
                "what": f"knn accuracy {accuracy:g}: {num_seeds}",
                "reason": f"not reached; the best of all looks is {best:.3f}",
            })  # fmt: skip
    end = max(statistics.median(each.looks[-1]["accuracy"] for each in runs), 1e-6)
    whole = [each.looks[-1]["seconds"] for each in runs]
    rows.append(row("training", "s", whole, accuracy=end, num_steps=runs[0].num_steps))
    rows.append(row("training and looks", "s", [each.whole_s for each in runs], accuracy=end))
    for looks in zip(*(each.looks for each in runs), strict=True):
        labels = {"epoch": looks[0]["epoch"], "stage": looks[0]["stage"]}
        labels["seconds"] = [round(look["seconds"], 3) for look in looks]
        rows.append(row("accuracy", "share", [look["accuracy"] for look in looks], **labels))
    return {"rows": rows, "ratios": [], "not_measured": missing}


def main() -> None:
    options = options_of(Options, __doc__)
    world = join_world(options.device, timeout_s=600)
    machine, started, is_sample = environment(world.device), time.perf_counter(), options.data is None
    paths = sample_paths()
    data, val = options.data or str(paths.train_32), options.val or str(paths.test_32)
    values = dict(VALUES[options.recipe])
    values |= {name: value for name, value in SAMPLE.items() if name in values} if is_sample else {}
    batch_size = 32 if is_sample else BATCH_SIZE[options.recipe]
    runs: list[Trained] = []
    with progress() as log, tempfile.TemporaryDirectory(prefix="fastpsl-bench-") as scratch:
        for seed in options.seeds:
            log(f"seed {seed}, {len(runs) + 1} of {len(options.seeds)}: training")
            longest = max((each.whole_s for each in runs), default=0.0)
            if runs and time.perf_counter() - started + longest > options.limit_s:
                break
            recipe = recipe_options(
                options.recipe, is_sample=False, batch_size=batch_size, data=data, val=val,
                out=Path(scratch) / f"seed-{seed}", seed=seed, plan=options.plan, device=options.device,
                probe_every=1, checkpoint_minutes=0.0, keep_checkpoints=1, tensorboard=False, **values,
            )  # fmt: skip
            if (trained := timed(MODULES[options.recipe], recipe, world)) is None:
                break
            runs.append(trained)
    if not runs:
        raise ValueError(f"interrupted before seed {options.seeds[0]} was done; start it again")
    with Beton(data) as opened, Beton(val) as held_out:
        about = data_record(opened, options.data) | {"num_held_out": held_out.num_samples}
    num_seeds = f"{len(runs)} of {counted(len(options.seeds), 'seed')}"
    stopped = f"{num_seeds}: stopped by --limit-s {options.limit_s:g} or a signal"
    publish(
        options.out, "time_to_accuracy", machine, "accuracy stage epoch num_reached", data=about,
        settings={
            "repeats": len(runs), "seeds": list(options.seeds[: len(runs)]), "plan": options.plan,
            "target": options.accuracy, "device": world.device.type, "batch_size": batch_size,
            "epochs": list(values["epochs"]), "precision": recipe.resolved_precision(world.device),
        },
        **tabulate(runs, options), notes=[stopped] if len(runs) < len(options.seeds) else [],
    )  # fmt: skip


if __name__ == "__main__":
    run_program(main)
