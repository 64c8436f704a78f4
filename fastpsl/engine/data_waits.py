"""The waits of a stage's steps for the loader. If they are long over a minute, a stage tells it once.

The line has the share and names `fastpsl doctor`, which measures each part and finds the cause.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import torch

from fastpsl.console.words import number_of
from fastpsl.engine.run import BatchSource
from fastpsl.pipelines.loader.loader import Loader

LONG_SHARE = 0.05  # not measured; below it, a faster loader would save a twentieth of the time at most
WINDOW_S = 60.0  # in a shorter one, a single slow read would count as much as a slow loader
Item = TypeVar("Item")


@dataclass
class Waits:
    """The waits of a number of batches, from one batch's arrival to the next."""

    num_batches: int = 0
    seconds: float = 0.0  # of all batches, each from its arrival to the next one's
    idle_s: float = 0.0  # the part of `seconds` in which the step waited for a batch

    @property
    def share(self) -> float:
        """The share of the time in which the step waited."""
        return self.idle_s / self.seconds

    @property
    def batch_ms(self) -> float:
        """The milliseconds from one batch to the next."""
        return 1e3 * self.seconds / self.num_batches

    @property
    def step_ms(self) -> float:
        """The milliseconds of `batch_ms` in which the step did not wait."""
        return 1e3 * (self.seconds - self.idle_s) / self.num_batches


def line_of(stage: str, waits: Waits, loader: BatchSource) -> str:
    """Return a line that tells how long a stage waits for its data, and why."""
    decoder = f"the decoder {loader.decoder_name}"
    if isinstance(loader, Loader):
        decoder += f" with {number_of(loader.num_threads, 'thread')}"
    return (
        f"{stage} waits for its data {waits.share:.0%} of the time: {decoder} needs {_ms(waits.batch_ms)} "
        f"for a batch, and the step {_ms(waits.step_ms)}. fastpsl doctor, with the same options, finds the "
        "cause"
    )


def _ms(value: float) -> str:
    return f"{value:{',.0f' if value >= 10 else '.2g'}} ms"


class DataWaits:
    """A watch over the waits of a stage."""

    def __init__(
        self,
        device: torch.device,
        num_ahead: int,
        tell: Callable[[Waits], None],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._is_cuda, self._num_ahead, self._tell = device.type == "cuda", num_ahead, tell
        self._clock = clock
        self._has_told = False
        self._waits = Waits()
        # Waits whose events the device has not reached: with the events before and after each.
        self._pending: deque[tuple[Waits, torch.cuda.Event | None, torch.cuda.Event | None]] = deque()
        self._free: list[torch.cuda.Event] = []

    def track(self, batches: Iterator[Item], num_left: int) -> Iterator[Item]:
        """Yield batches, and watch the time between them."""
        last_s = 0.0
        for i in count():
            # The loader fills with an epoch's first batches, and empties with the last: neither is its pace.
            counts = self._num_ahead < i < num_left - self._num_ahead and not self._has_told
            launched = self._mark() if counts else None
            asked_s = self._clock()
            try:
                batch = next(batches)
            except StopIteration:
                return
            came_s = self._clock()
            if counts:
                waits = Waits(num_batches=1, seconds=came_s - last_s, idle_s=came_s - asked_s)
                self._pending.append((waits, launched, self._mark()))
                self._judge()
            last_s = came_s
            yield batch

    def _mark(self) -> torch.cuda.Event | None:
        """Return an event behind the work that is launched so far; None on a CPU."""
        if not self._is_cuda:
            return None
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _judge(self) -> None:
        """Add up the waits that the device has reached, and tell them if they are long."""
        while self._pending and (self._pending[0][2] is None or self._pending[0][2].query()):
            wait, launched, came = self._pending.popleft()
            if launched is not None and came is not None:
                # A GPU's host runs ahead, so its own waits say little. Between these two events the device
                # had nothing to do: the host waited for the batch, or the batch's copy had not ended.
                wait.idle_s = launched.elapsed_time(came) / 1e3
                self._free += [launched, came]
            self._waits.num_batches += 1
            self._waits.seconds += wait.seconds
            self._waits.idle_s += wait.idle_s
        if self._waits.seconds < WINDOW_S:
            return
        waits, self._waits = self._waits, Waits()
        if waits.share > LONG_SHARE:
            self._has_told = True
            self._pending.clear()
            self._free.clear()
            self._tell(waits)
