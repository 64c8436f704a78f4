"""Saving of steps beside the training, also if a stop request arrives during a step that takes too long.

A checkpoint's state is copied on the host between two steps, and a thread writes the copy. The training
waits for it before the next copy, and at the end.

torchrun kills its ranks 30 s after it forwards a signal, as do Slurm and Kubernetes. The loop checks for
requests between steps, but a step that compiles, or first clusters a million images, takes minutes. Before
such a step, rank 0 therefore keeps a copy of the state. If the loop does not stop in time after a request, a
thread writes the copy. It then ends the process if that is the run's own, and no notebook's. The copy is also
written if an error ends the run.
"""

import contextlib
import copy
import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastpsl.console.progress import operation
from fastpsl.console.terminal import EXIT_CRASHED, EXIT_PREEMPTED
from fastpsl.console.words import pasted
from fastpsl.engine.distributed import wait_for_all
from fastpsl.engine.run import Run
from fastpsl.files.workers import Workers
from fastpsl.pipelines.decoders.memory import pinned_like


class Snapshot:
    """A copy of a state, in memory that the next copy uses again.

    A GPU's tensors are copied to pinned memory behind the device's work, so later launches change no copy.
    `take` waits for them where pinned memory is exhausted.
    """

    def __init__(self) -> None:
        self._buffers: dict[Any, Tensor] = {}
        self._arrived: torch.cuda.Event | None = None

    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of `state`, which holds its values once `wait` has returned."""
        before, self._buffers, self._arrived = self._buffers, {}, None
        copied: dict[str, Any] = self._copied(state, (), before)
        if any(key[-1] for key in self._buffers):
            self._arrived = torch.cuda.Event(blocking=True)  # its wait sleeps, as in `AsyncCopy`
            self._arrived.record()
        return copied

    def wait(self) -> None:
        """Wait until the device has copied the state."""
        if self._arrived is not None:
            self._arrived.synchronize()

    def _copied(self, value: Any, place: tuple[Any, ...], before: dict[Any, Tensor]) -> Any:
        if isinstance(value, Tensor):
            key = (place, value.shape, value.stride(), value.dtype, value.is_cuda)
            buffer = before.get(key)
            if buffer is None and value.is_cuda:
                buffer = pinned_like(value)
            elif buffer is None:
                buffer = torch.empty_like(value, device="cpu", requires_grad=False)
            self._buffers[key] = buffer.copy_(value.detach(), non_blocking=True)
            return buffer
        if isinstance(value, dict):
            copied = copy.copy(value)  # a module's state has an attribute, its version
            copied.update({name: self._copied(part, (*place, name), before) for name, part in value.items()})
            return copied
        if isinstance(value, (list, tuple)):
            return type(value)(self._copied(part, (*place, i), before) for i, part in enumerate(value))
        return copy.deepcopy(value)


LEAVE_AFTER_S = 15.0  # half of torchrun's limit; the other half is for writing
# Longer steps are copied to memory, which takes a fraction of a second. After a shorter one, the next may
# take three times as long and still ends in time.
LONG_STEP_S = LEAVE_AFTER_S / 3


@dataclass(eq=False)
class _Kept:
    """A copy of the state after a step of the run."""

    step: int
    state: dict[str, Any]
    is_written: bool = False


class LastStep:
    """A keeper of the last step: `with LastStep(run) as last_step:` around training, in the main thread.

    Only rank 0 writes and exits. It exits only if nothing but the current step is lost: if the last step is
    in memory, was saved, or is the one from which the run resumed.
    """

    def __init__(self, run: Run):
        self._run = run
        # The steps that are safe, at first those before the resume, and their copy in memory.
        self._safe: int | None = run.position.run_step
        self._kept: _Kept | None = None
        self._snapshot = Snapshot()
        # One thread from the start: where no memory is left, `Thread.start` may wait for ever (CPython 3.11).
        self._workers = Workers(int(run.world.rank == 0), "fastpsl-checkpoint")
        self._writing: Future[None] | None = None
        self._lock = threading.RLock()  # `save`, `write` and `keep` hold it while they call each other
        self._over = threading.Event()
        self._watches = run.world.rank == 0 and run.owns_process

    def __enter__(self) -> "LastStep":  # noqa: PYI034  (typing.Self is 3.11's)
        if self._watches:
            # A handler waits for the main thread, which may be in one long call. A byte here arrives at once.
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._watch, name="fastpsl-last-step", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self.wait()
                wait_for_all(self._run.world)  # torchrun ends ranks that write when another one has left
            else:
                with contextlib.suppress(Exception):  # the error that ended the run matters more
                    self.write()
        finally:
            if self._watches:
                self._end_watch()
            self._workers.close(0.0)

    def _end_watch(self) -> None:
        signal.set_wakeup_fd(self._previous_fd)
        self._over.set()
        self._writer.send(b"\0")
        self._thread.join(LEAVE_AFTER_S)  # it may be writing
        self._writer.close()
        self._reader.close()

    def save(self, state: dict[str, Any]) -> None:
        """Begin to write a checkpoint of the run's present step. Every rank calls it."""
        with self._lock:
            self.keep(state)
            self._begin_to_write()

    def keep(self, state: dict[str, Any]) -> None:
        """Keep a copy of the present step's state in memory, instead of the one before, on rank 0."""
        run = self._run
        with self._lock:
            self.wait()  # the new copy takes the memory of the one that is being written
            if run.world.rank == 0:
                self._kept = _Kept(run.position.run_step, self._snapshot.take(state))
            self._safe = run.position.run_step

    def write(self) -> None:
        """Write the kept copy, if it is not on the disk yet, and wait until it is."""
        with self._lock:
            self._begin_to_write()
            self.wait()

    def release(self) -> None:
        """Drop the kept copy, after a step that is not kept because steps are short."""
        with self._lock:
            self._safe = self._kept = None
            if self._writing is not None and self._writing.done():
                self.wait()

    def is_safe(self) -> bool:
        """Return whether the run's present step is kept or saved."""
        return self._safe == self._run.position.run_step

    def wait(self) -> None:
        """Wait until no checkpoint is being written."""
        with self._lock:
            if self._writing is not None:
                with operation("writing a checkpoint"):
                    wait([self._writing], max(self._deadline - time.monotonic(), 0))
                if not self._writing.done():
                    reason = f"it takes more than {self._limit_s:g} s"
                    raise TimeoutError(errno.ETIMEDOUT, reason, str(self._run.checkpoints.folder))
                written, self._writing = self._writing, None
                written.result()  # raises its error

    def _begin_to_write(self) -> None:
        kept = self._kept
        if kept is not None and not kept.is_written and self._writing is None:
            self._deadline = time.monotonic() + self._limit_s
            self._writing = self._workers.call(self._write, kept)

    def _write(self, kept: _Kept) -> None:
        self._snapshot.wait()
        self._run.save(kept.step, kept.state)
        kept.is_written = True

    @property
    def _limit_s(self) -> float:
        """The longest time of writing: half of what the other ranks wait for this one."""
        return 5 * self._run.options.timeout_s

    def _watch(self) -> None:
        numbers = set[int]()
        while not numbers & {0, signal.SIGTERM, signal.SIGINT}:
            numbers = set(self._reader.recv(4096))  # a byte for each signal, more than ever wait
        if self._over.wait(LEAVE_AFTER_S):
            return
        with self._lock:
            # The loop may have finished one more step, which waits for the other ranks and is not kept.
            step = self._run.position.run_step
            if not self._over.is_set() and self._safe in (step - 1, step):
                self._leave()

    def _leave(self) -> None:
        run = self._run
        lost = run.status() == "failed"  # another rank has reported why, and its launcher stops this one
        try:
            self.write()
            if not lost:
                run.write_status("preempted", "interrupted")
        except Exception as error:  # noqa: BLE001  (it does not exit, because the loop may still finish)
            print(f"interrupted, but what was learned cannot be saved: {error}", file=sys.stderr)
            return
        assert run.reporter.screen is not None
        run.reporter.screen.close()
        resume_hint = "goes on from there" if run.checkpoints.paths() else "starts anew"
        where = f"stage {run.position.stage + 1}, after {self._safe} steps of the run"
        with contextlib.suppress(OSError):  # stdout may be closed
            print(
                f"interrupted in {where}, without waiting for the next to end; "
                f"the same command with --out {pasted(run.folder)} {resume_hint}",
                flush=True,
            )
        os._exit(EXIT_CRASHED if lost else EXIT_PREEMPTED)


class Safepoint:
    """The points of a stage between two steps, at which all ranks stop, save, or keep `state()` in memory."""

    def __init__(self, run: Run, last_step: LastStep, state: Callable[[], dict[str, Any]]):
        self._run, self._last_step, self._state = run, last_step, state

    def after_step(self, *, is_first: bool, is_last: bool) -> bool:
        """Save, keep or release the state. Return whether a signal stops the stage before its last step."""
        decision, every = self._run.stop_signal.after_step(), self._run.options.checkpoint_steps
        if decision.stop and not is_last:
            return True
        if decision.checkpoint or (every and self._run.position.run_step % every == 0):
            self.save()
        elif decision.seconds > LONG_STEP_S or is_first:
            self.keep()  # the first time, it also takes the memory that later checkpoints need
        else:
            self._last_step.release()
        return False

    def save(self) -> None:
        """Begin to write a checkpoint on rank 0. Every rank calls it, as tasks may gather their state."""
        self._run.reporter.flush()
        self._last_step.save(self._state())
        self._run.stop_signal.checkpointed()

    def keep(self) -> None:
        """Keep the state in memory unless it is safe, in case a long work is stopped. Every rank calls it."""
        if not self._last_step.is_safe():
            self._run.reporter.flush()
            self._last_step.keep(self._state())
            self._run.stop_signal.other_pace()  # the copy's time is not part of a step

    def write(self) -> bool:
        """Write the state and wait for it. Return False if it cannot be written."""
        try:
            self.keep()
            self._last_step.write()  # a safe one may be from before `start_epoch`, which a resume calls again
        except (ValueError, OSError):
            return False
        return True
