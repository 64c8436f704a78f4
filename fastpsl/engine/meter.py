"""What a training takes: its seconds, and on NVIDIA's GPUs its joules, where NVML tells them.

Both count all work of a run, also loaders, compiling, passes and checkpoints, but not the monitor's looks. A
resumed run goes on from its checkpoint's. The counter of energy is read when it is asked for, never in a
step, and no device is waited for.
"""

import contextlib
import ctypes
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import distributed as dist

from fastpsl.engine.distributed import World
from fastpsl.engine.gpu import nvml


class Meter:
    """A meter of a run, which runs from `start` on, except within `stopped`."""

    def __init__(self, world: World, before: Mapping[str, Any] | None):
        """Make a meter; `before` is what a checkpoint recorded of it, or None for a new run."""
        values = {"seconds": 0.0, "joules": 0.0} if before is None else before
        self.world = world
        self._seconds, self._joules = values.get("seconds"), values.get("joules")
        if world.rank and self._joules is not None:
            self._joules = 0.0  # rank 0 has what all have used
        self._open = contextlib.ExitStack()
        self._ask = self._open.enter_context(nvml(world.device))
        self._started: tuple[float, float | None] | None = None

    def start(self) -> None:
        self._started = time.perf_counter(), self._counter()

    def _counter(self) -> float | None:
        """Return the joules that this rank's GPU has used since its driver was loaded; None if unknown."""
        millijoules = ctypes.c_ulonglong()
        is_told = self._ask("nvmlDeviceGetTotalEnergyConsumption", millijoules)
        return millijoules.value / 1000 if is_told else None

    def _stop(self) -> None:
        """Add what the time since the start took; an energy that is not told makes the sum unknown."""
        if self._started is None:
            return
        (began_s, before), counter = self._started, self._counter()
        self._started = None
        if self._seconds is not None:
            self._seconds += time.perf_counter() - began_s
        known = None not in (self._joules, before, counter)
        self._joules = self._joules + counter - before if known else None  # type: ignore[operator]

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Count nothing within the context."""
        was_running = self._started is not None
        self._stop()
        try:
            yield
        finally:
            if was_running:
                self.start()

    def so_far(self) -> dict[str, float | None]:
        """Return this rank's seconds and all ranks' joules; None if unknown. Every rank calls it."""
        with self.stopped():
            joules = self._joules
        if self.world.size > 1 and self.world.device.type == "cuda":
            total = torch.tensor(math.nan if joules is None else joules, dtype=torch.float64)
            dist.all_reduce(total)
            joules = float(total)
        joules = None if joules is None or math.isnan(joules) else round(joules, 3)
        return {"seconds": None if self._seconds is None else round(self._seconds, 3), "joules": joules}

    def close(self) -> None:
        self._open.close()
