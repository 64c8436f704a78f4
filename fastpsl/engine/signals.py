"""Stopping and checkpointing after the same step on every rank: signals and the clock."""

import signal
import time
from typing import NamedTuple

import torch
import torch.distributed as dist

from fastpsl.engine.distributed import World


class Signals(NamedTuple):
    stop: bool
    checkpoint: bool
    seconds: float = 0.0  # a step, of the slowest rank; 0 where it was not asked


class StopSignal:
    """All ranks decide, after the same step, whether to stop (SIGTERM or SIGINT reached any of them) or checkpoint.

    The flags travel over Gloo about once a second: ranks agree on the next step at which to ask from the slowest rank's
    time per step, so nothing depends on clocks being equal, the GPU is never waited for, and torchrun's 30 s suffice.
    """

    ask_every_s = 1.0
    max_steps_between = 64

    def __init__(self, world: World, checkpoint_minutes: float):
        self.world = world
        self.stop_requested = False
        self._checkpoint_s = checkpoint_minutes * 60
        self._last_checkpoint = self._last_asked = time.monotonic()
        self._steps_since = 0
        self._ask_after = 1
        self._replaced = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in self._replaced:
            signal.signal(number, self._request_stop)

    def _request_stop(self, *_: object) -> None:
        self.stop_requested = True  # Ctrl-C under torchrun arrives twice; once is enough

    def after_step(self) -> Signals:
        """To be called by every rank after every step."""
        self._steps_since += 1
        if self._steps_since < self._ask_after:
            return Signals(False, False)
        now = time.monotonic()
        due = self._checkpoint_s > 0 and now - self._last_checkpoint >= self._checkpoint_s
        flags = torch.tensor([self.stop_requested, due, (now - self._last_asked) / self._steps_since])
        if self.world.size > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
            steps = int(self.ask_every_s / max(float(flags[2]), 1e-6))
            self._ask_after = min(max(steps, 1), self.max_steps_between)
        self._steps_since, self._last_asked = 0, now
        return Signals(bool(flags[0]), bool(flags[1]), float(flags[2]))

    def other_pace(self) -> None:
        """What comes now takes another time per step: ask after the first of them. To be called by every rank, between the same two."""
        self._steps_since, self._ask_after, self._last_asked = 0, 1, time.monotonic()

    def checkpointed(self) -> None:
        """Restart the clock of `checkpoint_minutes`; the time of writing is no step's. To be called as `other_pace`."""
        self._last_checkpoint = time.monotonic()
        self.other_pace()

    def close(self) -> None:
        """Put the former signal handlers back."""
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
