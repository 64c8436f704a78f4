"""A stop request within a step that does not end in time: what the last step left is saved without it, and the process leaves.

torchrun kills its ranks 30 s after it has passed a signal on, as Slurm and Kubernetes do, and the loop asks between steps: one that
compiles, or clusters a million images first, takes minutes. So before what may take long rank 0 keeps what a checkpoint would hold, as
the file's bytes. On a request a thread waits for the loop, and where it does not come, writes them, whatever the main thread is in. They
are written, too, where an error ends the run.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from typing import Any

from fastpsl.engine.run import Run

EXIT_PREEMPTED = 75
LEAVE_AFTER_S = 15.0  # half of torchrun's limit: the rest is for writing
LONG_STEP_S = LEAVE_AFTER_S / 3  # copies are kept of steps that take longer; a copy is a fraction of a second


class LastStep:
    """`with LastStep(run) as last_step:` around training, in the main thread; rank 0 alone writes and leaves.

    It leaves only where nothing is lost but the step under way: where the last step is kept, or saved, or was resumed from.
    """

    def __init__(self, run: Run):
        self._run = run
        # Steps of the run that are safe, and the checkpoint's bytes where they are not on the disk. At the start: those resumed from, or none.
        self._safe: int | None = run.position.run_step
        self._data: memoryview | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()

    def __enter__(self) -> "LastStep":  # noqa: PYI034  (typing.Self is 3.11's)
        if self._run.world.rank == 0:
            # Python's own handlers wait for the main thread, which may be in one long call; what is written here is not kept waiting.
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._replaced = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._watch, name="fastpsl-last-step", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._run.world.rank == 0:
            if error[0] is not None:
                with contextlib.suppress(ValueError, OSError):  # the error that ends the run came first
                    self.write()
            signal.set_wakeup_fd(self._replaced)
            self._over.set()
            self._writer.send(b"\0")
            self._thread.join(LEAVE_AFTER_S)  # it may be writing
            self._writer.close()
            self._reader.close()

    def save(self, state: dict[str, Any]) -> None:
        """A checkpoint of where the run stands; every rank calls it."""
        run = self._run
        with self._lock:  # what is being written is written to its end
            if run.world.rank == 0:
                run.checkpoints.write(run.position.run_step, run.packed(state))
            self._safe, self._data = run.position.run_step, None

    def keep(self, state: dict[str, Any]) -> None:
        """The same in memory, in the place of what was kept before."""
        run = self._run
        data = run.packed(state) if run.world.rank == 0 else None
        with self._lock:
            self._safe, self._data = run.position.run_step, data

    def write(self) -> None:
        """What is kept, to the disk; nothing where nothing is kept, or where it is there already."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        if self._data is not None:
            assert self._run.reporter.file is not None and self._safe is not None
            self._run.reporter.file.sync()
            self._run.checkpoints.write(self._safe, self._data)
            self._data = None

    def let_go(self) -> None:
        """A step was made, and is not kept: steps are short."""
        with self._lock:
            self._safe = self._data = None

    def is_safe(self) -> bool:
        """Whether the step at which the run stands is kept or saved."""
        return self._safe == self._run.position.run_step

    def _watch(self) -> None:
        numbers = set[int]()
        while not numbers & {0, signal.SIGTERM, signal.SIGINT}:
            numbers = set(self._reader.recv(4096))
        if self._over.wait(LEAVE_AFTER_S):
            return
        with self._lock:
            # A step that is over, and waits for other ranks' word, is not the last yet.
            if not self._over.is_set() and self._safe in range(
                self._run.position.run_step - 1, self._run.position.run_step + 1
            ):
                self._leave()

    def _leave(self) -> None:
        run = self._run
        try:
            self._write()
            run.write_status("preempted", "stopped by a signal")
        except (OSError, ValueError) as error:  # the loop may come to its end yet
            print(f"stopped by a signal, but what was learned cannot be saved: {error}", file=sys.stderr)
            return
        assert run.reporter.screen is not None
        run.reporter.screen.close()
        goes_on = "goes on from there" if run.checkpoints.paths() else "starts anew"
        where = f"stage {run.position.stage + 1}, after {self._safe} steps of the run"
        try:
            print(
                f"stopped by a signal in {where}, without waiting for the next to end; "
                f"the same command with --out {run.folder} {goes_on}",
                flush=True,
            )
        except OSError:
            pass  # nobody reads it
        os._exit(EXIT_PREEMPTED)
