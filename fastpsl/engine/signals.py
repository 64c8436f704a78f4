"""Decisions to stop or to write a checkpoint, by signals and the clock, after the same step on every rank."""

import contextlib
import os
import signal
import threading
import time
from typing import NamedTuple

import torch
import torch.distributed as dist

from fastpsl.engine.distributed import World


class Decision(NamedTuple):
    """The decision of all ranks after a step.

    Attributes:
        stop: Whether to stop.
        checkpoint: Whether to write a checkpoint.
        seconds: Seconds per step of the slowest rank; 0 if the ranks did not communicate.
    """

    stop: bool
    checkpoint: bool
    seconds: float = 0.0


class StopSignal:
    """A decision of all ranks, after the same step, to stop or to write a checkpoint.

    They stop if any rank has received SIGTERM or SIGINT; in a thread, they are not received. Flags are
    exchanged over Gloo about once per second. From the slowest rank's time per step, all ranks compute the
    next step at which to exchange them. So the clocks need not agree, the GPU is never waited for, and
    torchrun's 30 s suffice.
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
        # Python delivers signals to the main thread, and refuses handlers in others.
        is_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGTERM, signal.SIGINT) if is_main else ()
        self._handlers = {number: signal.getsignal(number) for number in numbers}
        for number in self._handlers:
            signal.signal(number, self._request_stop)

    def _request_stop(self, *_: object) -> None:
        if self.world.rank == 0 and not self.stop_requested:  # under torchrun, Ctrl-C arrives twice
            # A print might be interrupted by this very signal, and stderr's lock is not reentrant.
            with contextlib.suppress(OSError):
                os.write(2, b"\ninterrupted: stopping after this step\n")
        self.stop_requested = True

    def after_step(self) -> Decision:
        """Return the decision after a step. Every rank calls it after every step."""
        self._steps_since += 1
        if self._steps_since < self._ask_after:
            return Decision(False, False)
        now = time.monotonic()
        due = self._checkpoint_s > 0 and now - self._last_checkpoint >= self._checkpoint_s
        flags = torch.tensor([self.stop_requested, due, (now - self._last_asked) / self._steps_since])
        if self.world.size > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
            steps = int(self.ask_every_s / max(float(flags[2]), 1e-6))
            self._ask_after = min(max(steps, 1), self.max_steps_between)
        self._steps_since, self._last_asked = 0, now
        return Decision(bool(flags[0]), bool(flags[1]), float(flags[2]))

    def other_pace(self) -> None:
        """Prepare for steps of another duration: exchange flags after the first one. Every rank calls it."""
        self._steps_since, self._ask_after, self._last_asked = 0, 1, time.monotonic()

    def checkpointed(self) -> None:
        """Restart the clock of `checkpoint_minutes` after writing. Every rank calls it."""
        self._last_checkpoint = time.monotonic()
        self.other_pace()

    def ignore(self) -> None:
        """Ignore the signals from here on: the process is about to end, and its exit code shall say how."""
        for number in self._handlers:
            signal.signal(number, signal.SIG_IGN)
        self._handlers.clear()

    def close(self) -> None:
        """Restore the former signal handlers, unless the signals are ignored."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
