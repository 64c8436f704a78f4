"""Saving of the last step if a stop request arrives during a step that takes too long to finish.

torchrun kills its ranks 30 s after it forwards a signal, as do Slurm and Kubernetes. The loop checks for
requests between steps, but a step that compiles, or first clusters a million images, takes minutes. Before
such a step, rank 0 therefore keeps the bytes of a checkpoint in memory. After a request, a thread waits for
the loop. If the loop does not stop in time, the thread writes the bytes and exits, whatever the main thread
is doing. In a process that is not the run's own, such as a notebook's, nothing exits. The bytes are also
written if an error ends the run.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from typing import Any

from fastpsl.engine.exit_codes import EXIT_CRASHED, EXIT_PREEMPTED
from fastpsl.engine.run import Run

LEAVE_AFTER_S = 15.0  # half of torchrun's limit; the other half is for writing
LONG_STEP_S = LEAVE_AFTER_S / 3  # longer steps are copied to memory, which takes a fraction of a second


class LastStep:
    """A keeper of the last step: `with LastStep(run) as last_step:` around training, in the main thread.

    Only rank 0 writes and exits. It exits only if nothing but the current step is lost: if the last step is
    in memory, was saved, or is the one from which the run resumed.
    """

    def __init__(self, run: Run):
        self._run = run
        # The number of steps that are safe, and the checkpoint's bytes if they are not on the disk. At the
        # start, the steps before the resume are safe.
        self._safe: int | None = run.position.run_step
        self._data: memoryview | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._watches = run.world.rank == 0 and run.owns_process

    def __enter__(self) -> "LastStep":  # noqa: PYI034  (typing.Self is 3.11's)
        if self._watches:
            # Python's signal handlers wait for the main thread, which may be in one long call. A byte in this
            # socket arrives at once.
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._watch, name="fastpsl-last-step", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._run.world.rank == 0 and error[0] is not None:
            with contextlib.suppress(ValueError, OSError):  # the error that ended the run matters more
                self.write()
        if self._watches:
            signal.set_wakeup_fd(self._previous_fd)
            self._over.set()
            self._writer.send(b"\0")
            self._thread.join(LEAVE_AFTER_S)  # it may be writing
            self._writer.close()
            self._reader.close()

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint of the run's present step. Every rank calls it."""
        run = self._run
        with self._lock:  # a write in progress must finish
            if run.world.rank == 0:
                run.checkpoints.write(run.position.run_step, run.packed(state))
            self._safe, self._data = run.position.run_step, None

    def keep(self, state: dict[str, Any]) -> None:
        """Keep a checkpoint of the present step in memory, instead of the one before. Every rank calls it."""
        run = self._run
        data = run.packed(state) if run.world.rank == 0 else None
        with self._lock:
            self._safe, self._data = run.position.run_step, data

    def write(self) -> None:
        """Write the kept checkpoint, if it is not on the disk yet."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        if self._data is not None:
            assert self._run.reporter.file is not None and self._safe is not None
            self._run.reporter.file.sync()
            self._run.checkpoints.write(self._safe, self._data)
            self._data = None

    def release(self) -> None:
        """Drop the kept checkpoint, after a step that is not kept because steps are short."""
        with self._lock:
            self._safe = self._data = None

    def is_safe(self) -> bool:
        """Return whether the run's present step is kept or saved."""
        return self._safe == self._run.position.run_step

    def _watch(self) -> None:
        numbers = set[int]()
        while not numbers & {0, signal.SIGTERM, signal.SIGINT}:
            numbers = set(self._reader.recv(4096))
        if self._over.wait(LEAVE_AFTER_S):
            return
        with self._lock:
            # The loop may have finished one more step, which waits for the other ranks and is not kept.
            if not self._over.is_set() and self._safe in range(
                self._run.position.run_step - 1, self._run.position.run_step + 1
            ):
                self._leave()

    def _leave(self) -> None:
        run = self._run
        lost = run.status() == "failed"  # another rank has reported why, and its launcher stops this one
        try:
            self._write()
            if not lost:
                run.write_status("preempted", "interrupted")
        except OSError as error:  # do not exit, because the loop may still finish
            print(f"interrupted, but what was learned cannot be saved: {error}", file=sys.stderr)
            return
        assert run.reporter.screen is not None
        run.reporter.screen.close()
        resume_hint = "goes on from there" if run.checkpoints.paths() else "starts anew"
        where = f"stage {run.position.stage + 1}, after {self._safe} steps of the run"
        try:
            print(
                f"interrupted in {where}, without waiting for the next to end; "
                f"the same command with --out {run.folder} {resume_hint}",
                flush=True,
            )
        except OSError:
            pass  # stdout is closed
        os._exit(EXIT_CRASHED if lost else EXIT_PREEMPTED)
