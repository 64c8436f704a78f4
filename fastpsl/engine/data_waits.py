"""The waits of a stage's steps for the loader. If they are long over a minute, a stage tells it once.

On a CPU a step waits as long as `next(batches)` takes. On a GPU the host runs ahead, and its own waits say
little. There a wait is the time in which the device had nothing to do before a batch was on it: the host
waited for the batch, or the batch's copy had not ended.
"""

import resource
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple, TypeVar

import torch

LONG_SHARE = 0.05
WINDOW_S = 60.0
_BLOCK_BYTES = 512  # of ru_inblock
Item = TypeVar("Item")


class Usage(NamedTuple):
    """The use of the machine by this process since its start.

    Attributes:
        cpu_s: CPU time of all threads.
        read_bytes: Bytes that came from storage, not from the page cache.
    """

    cpu_s: float
    read_bytes: int


def usage_now() -> Usage:
    """Return the use of the machine up to now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(used.ru_utime + used.ru_stime, used.ru_inblock * _BLOCK_BYTES)


@dataclass
class Waits:
    """The waits of a number of batches, from one batch's arrival to the next.

    Attributes:
        num_batches: The number of batches.
        seconds: The time that they took.
        idle_s: The part in which the step waited for them.
        host_s: The part in which the host waited for them.
        copy_s: On a GPU, the part in which the step waited for what the host had: copies, and the decoder's
            work on the GPU.
        cpu_s: CPU time of this process while the host waited.
        read_bytes: Bytes that came from storage.
    """

    num_batches: int = 0
    seconds: float = 0.0
    idle_s: float = 0.0
    host_s: float = 0.0
    copy_s: float = 0.0
    cpu_s: float = 0.0
    read_bytes: int = 0

    @property
    def share(self) -> float:
        """The share of the time in which the step waited."""
        return self.idle_s / self.seconds

    @property
    def batch_ms(self) -> float:
        """The time from one batch to the next."""
        return 1e3 * self.seconds / self.num_batches

    @property
    def step_ms(self) -> float:
        """The part of it in which the step did not wait."""
        return 1e3 * (self.seconds - self.idle_s) / self.num_batches

    @property
    def busy_cores(self) -> float:
        """The cores that this process kept busy while the host waited."""
        return self.cpu_s / max(self.host_s, 1e-9)


class DataWaits:
    """A watch over the waits of a stage.

    Args:
        device: The device of the steps.
        num_ahead: The batches that the loader prepares ahead. So many, and one more, do not count at the
            beginning of an epoch, nor so many at its end.
        tell: The function that is called once, after a minute with waits of more than LONG_SHARE.
        clock: Returns the seconds from some moment on.
        usage: Returns the use of the machine.
    """

    def __init__(
        self,
        device: torch.device,
        num_ahead: int,
        tell: Callable[[Waits], None],
        *,
        clock: Callable[[], float] = time.perf_counter,
        usage: Callable[[], Usage] = usage_now,
    ):
        self._is_cuda, self._num_ahead, self._tell = device.type == "cuda", num_ahead, tell
        self._clock, self._usage = clock, usage
        self._has_told = False
        self._waits = Waits()
        # Waits whose events the device has not reached: with the events before and after each.
        self._pending: deque[tuple[Waits, torch.cuda.Event | None, torch.cuda.Event | None]] = deque()
        self._free: list[torch.cuda.Event] = []

    def track(self, batches: Iterator[Item], num_left: int) -> Iterator[Item]:
        """Yield batches, and watch the time between them.

        Args:
            batches: The batches of an epoch, from the loader.
            num_left: Their number, if the epoch goes on to its end.
        """
        last_s, last_use = 0.0, Usage(0.0, 0)
        for i in count():
            counts = self._num_ahead < i < num_left - self._num_ahead and not self._has_told
            launched = self._mark() if counts else None
            asked_s, asked_use = self._clock(), self._usage()
            try:
                batch = next(batches)
            except StopIteration:
                return
            came_s, came_use = self._clock(), self._usage()
            if counts:
                waits = Waits(
                    num_batches=1,
                    seconds=came_s - last_s,
                    host_s=came_s - asked_s,
                    cpu_s=came_use.cpu_s - asked_use.cpu_s,
                    read_bytes=came_use.read_bytes - last_use.read_bytes,
                )
                self._pending.append((waits, launched, self._mark()))
                self._judge()
            last_s, last_use = came_s, came_use
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
            idle_s = wait.host_s
            if launched is not None and came is not None:
                idle_s = launched.elapsed_time(came) / 1e3
                self._free += [launched, came]
            total = self._waits
            total.num_batches += 1
            total.seconds += wait.seconds
            total.idle_s += idle_s
            total.host_s += wait.host_s
            total.copy_s += max(0.0, idle_s - wait.host_s)
            total.cpu_s += wait.cpu_s
            total.read_bytes += wait.read_bytes
        if self._waits.seconds < WINDOW_S:
            return
        waits, self._waits = self._waits, Waits()
        if waits.share > LONG_SHARE:
            self._has_told = True
            self._pending.clear()
            self._free.clear()
            self._tell(waits)
