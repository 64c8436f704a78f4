"""Threads, descriptors and memory of loaders that are opened thousands of times, and of a long run.

They must not grow: after a warm-up, the slope of a least-squares line is compared with its error. As a
script, DECODER DATA COUNT SEED, this file opens a loader repeatedly and leaves it early in every way. It
prints lines of JSON: openings so far, threads, descriptors, resident bytes.
"""

import gc
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from signal import SIGTERM
from typing import NamedTuple

import numpy as np
from typing_extensions import override

from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.geometry import Flip
from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from tests.faults.report import Finding
from tests.faults.runs import JIGSAW, beton, num_steps, start, verdict
from tests.pipelines.photos import DECODERS

# Per opening. 1 kB each would be 10 MB after 10,000.
BOUNDS_OF_OPENINGS = {"threads": 0.001, "descriptors": 0.001, "resident_bytes": 1000.0}
# Per minute. 200 kB are 12 MB an hour, 2 GB a week.
BOUNDS_OF_TRAINING = {"threads": 0.01, "descriptors": 0.01, "resident_bytes": 200_000.0}
# This share does not count: caches fill, code is compiled, malloc reaches its size.
_WARM_UP = 0.2
_S_PER_OPENING = 5.0
_NUM_LINES, _NUM_LOOKS = 200, 300


class Held(NamedTuple):
    """The resources that a process holds."""

    threads: int
    descriptors: int
    resident_bytes: int


def held_by(pid: int) -> Held:
    """Return the resources of a running process; raise OSError if there is none."""
    lines = (line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    status = {name: value.split() for name, value in lines}
    return Held(int(status["Threads"][0]), len(os.listdir(f"/proc/{pid}/fd")), 1024 * int(status["VmRSS"][0]))


class Slope(NamedTuple):
    """The growth per unit of x, and its standard error."""

    value: float
    error: float

    def above(self, bound: float) -> bool:
        """Return whether the slope exceeds `bound` by more than three standard errors."""
        return self.value - 3 * self.error > bound

    @override
    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.error:.2g}"


def slope(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> Slope:
    """Fit a line through [n] points, n >= 3.

    Points that are close in time are correlated. So the error grows by the square root of (1 + r) / (1 - r),
    where r is the correlation of successive residuals.
    """
    times, values = np.asarray(x, float), np.asarray(y, float)
    times = times - times.mean()
    squares = float(times @ times)
    value = float(times @ values) / squares
    rest = values - values.mean() - value * times
    rest_squares = float(rest @ rest)
    r = min(max(float(rest[1:] @ rest[:-1]) / rest_squares, 0.0), 0.99) if rest_squares > 0 else 0.0
    return Slope(value, float(np.sqrt(rest_squares / (len(times) - 2) / squares * (1 + r) / (1 - r))))


def judge_growth(
    x: Sequence[float], held: Sequence[Held], bounds: Mapping[str, float], unit: str
) -> tuple[bool, str]:
    """Return whether anything grows beyond its bound per `unit` of x, and all slopes in one line."""
    grows, words = False, []
    for name, bound in bounds.items():
        values = [getattr(each, name) for each in held]
        growth = slope(x, values)
        grows |= growth.above(bound)
        words.append(f"{name} {growth} per {unit} (bound {bound:g}; {values[0]:,} → {values[-1]:,})")
    return grows, "; ".join(words)


def openings(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield a finding for each installed decoder, after `count` openings (10 at least)."""
    count = max(count, 10)
    data = beton(folder / "x.beton")
    for decoder in DECODERS:
        process = start([__file__, decoder, data, count, seed], folder / f"{decoder}.log")
        end = process.wait(600 + _S_PER_OPENING * count)
        outcome, detail = verdict(end, decoder)
        if outcome == "goes on":
            lines = [json.loads(line) for line in end.output.splitlines() if line.startswith("[")]
            counted = [(num, Held(*held)) for num, *held in lines if num > _WARM_UP * count]
            nums, held = zip(*counted, strict=True)
            grows, detail = judge_growth(nums, held, BOUNDS_OF_OPENINGS, "opening")
            outcome, detail = ("memory" if grows else "as before"), f"{count:,} openings: {detail}"
        yield Finding(decoder, outcome, detail)


def training(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield one finding, after `count` minutes."""
    options = (
        *("--plan", "end_to_end", "--epochs", 1_000_000, "--max-steps-per-stage", 100_000_000),
        *("--checkpoint-steps", 200, "--keep-checkpoints", 2, "--tensorboard", "--seed", seed),
    )
    out, seconds = folder / "run", 60.0 * count
    process = start(JIGSAW.command(out, *options), folder / "log")
    process.wait_until(lambda: num_steps(out) >= 20, 120)
    minutes, held = [], []
    started = time.monotonic()
    while time.monotonic() - started < seconds and process.poll() is None:
        time.sleep(seconds / _NUM_LOOKS)
        if process.poll() is None and time.monotonic() - started > _WARM_UP * seconds:
            minutes.append((time.monotonic() - started) / 60)
            held.append(held_by(process.pid))
    steps = num_steps(out)
    process.send(SIGTERM)
    outcome, detail = verdict(process.wait(120), codes=(75,))
    if outcome == "goes on":
        grows, detail = judge_growth(minutes, held, BOUNDS_OF_TRAINING, "minute")
        outcome, detail = ("memory" if grows else "as before"), f"{count} minutes, {steps:,} steps: {detail}"
    yield Finding("jigsaw", outcome, detail)


def _open_and_leave(decoder: str, data: str, epoch: int, chance: random.Random) -> None:
    """Take 0 to 3 of 6 batches, then close or drop the iterator, or raise, and close the loader."""
    view = ViewSpec(RandomResizedCrop(32), (Flip(),))
    way = chance.choice(("closed", "dropped", "raised", "never begun"))
    try:
        with (
            closing(open_data(data)) as opened,
            Loader(opened, [view, view], batch_size_per_rank=8, decoder=decoder, num_threads=2) as loader,
        ):
            batches = loader.epoch(epoch)
            if way == "never begun":
                return
            for _ in range(chance.randrange(4)):
                next(batches)
            if way == "closed":
                batches.close()  # type: ignore[attr-defined]
            if way == "raised":
                raise KeyError(way)
    except KeyError as error:
        assert error.args == ("raised",)


def _main(decoder: str, data: str, words: str, seed: str) -> None:
    count, chance = int(words), random.Random(seed)
    for number in range(1, count + 1):
        _open_and_leave(decoder, data, number, chance)
        if number % max(count // _NUM_LINES, 1) == 0:
            gc.collect()
            print(json.dumps([number, *held_by(os.getpid())]), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
