"""Recipes and commands in forks of the warm server (`tests.warm`), which the harness starts and signals.

Tests of the interpreter itself (imports, a broken pipe at its exit) need a process of their own: `fresh`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

from tests.warm import spawn

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONPATH": str(ROOT),
    "COLUMNS": "200",
}
Command = Sequence[object]  # (recipe's file, its options...), or ("fastpsl", a command...)


def output_of(log: Path) -> Path:
    """Return the file for the standard output of a process with its errors in `log`."""
    return log.with_suffix(".out")


class ProcessEnd(NamedTuple):
    """The end of a process.

    Attributes:
        code: The exit code; below 0 the signal that ended it, None if it was killed at its time limit.
        output: Its standard output, then its errors.
        seconds: The time that it ran.
    """

    code: int | None
    output: str
    seconds: float


class RunningProcess:
    """A running process, with its errors in the file `log` and its output in a file beside it."""

    def __init__(self, process: ForkServerProcess | subprocess.Popen[bytes], log: Path):
        self._process, self.log, self._since = process, log, time.monotonic()
        assert process.pid
        self.pid = process.pid

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self._process.poll() if isinstance(self._process, subprocess.Popen) else self._process.exitcode

    def send(self, number: signal.Signals, group: bool = True) -> None:
        """Send a signal to the process, or with `group` to its whole group; do nothing if none is left."""
        with contextlib.suppress(ProcessLookupError):
            if group:
                with contextlib.suppress(ProcessLookupError):  # its session does not exist yet
                    os.killpg(self.pid, number)
                    return
            os.kill(self.pid, number)

    def wait(self, limit_s: float = 120) -> ProcessEnd:
        """Wait for the end; after `limit_s` seconds kill the group and return the code None."""
        deadline = time.monotonic() + limit_s
        while (code := self.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        seconds = time.monotonic() - self._since
        if code is None:
            self.send(signal.SIGKILL)
            deadline = time.monotonic() + 10
            while self.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
        texts = [
            path.read_text(errors="backslashreplace")
            for path in (output_of(self.log), self.log)
            if path.exists()
        ]
        return ProcessEnd(code, "".join(texts), seconds)

    def wait_until(self, happened: Callable[[], object], limit_s: float = 120) -> bool:
        """Poll `happened` until it is true; return False if the process or the time ended first."""
        deadline = time.monotonic() + limit_s
        while self.poll() is None and time.monotonic() < deadline:
            if happened():
                return True
            time.sleep(0.001)
        return bool(happened())

    def others_left(self) -> bool:
        """Return whether a process of its group is still alive."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return True


def start(
    command: Command,
    log: Path,
    environment: Mapping[str, str | None] | None = None,
    prepare: Callable[[], object] | None = None,
) -> RunningProcess:
    """Run a command in a fork of the warm server.

    Args:
        command: The command.
        log: The file for its errors.
        environment: Variables to set, or with None to remove.
        prepare: Called in the fork before the command (limits, mounts). It must be picklable, such as a
            function of a module or a `partial` of one.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    words = list(map(str, command))
    return RunningProcess(spawn(words, _variables(environment), ROOT, output_of(log), log, prepare), log)


def fresh(
    command: Command,
    log: Path,
    environment: Mapping[str, str | None] | None = None,
    before: Sequence[str] = (),
    **settings: object,
) -> RunningProcess:
    """Run a command in an interpreter of its own.

    Args:
        command: The command.
        log: The file for its errors.
        environment: Variables to set, or with None to remove.
        before: Words in front of the command (torchrun, setpriv).
        **settings: Arguments of Popen.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    script, *options = map(str, command)
    if script == "fastpsl":
        words = [sys.executable, "-c", "from fastpsl.cli import main; main()", *options]
    else:
        words = [sys.executable, script, *options]
    with open(output_of(log), "ab") as output, open(log, "ab") as errors:
        process = subprocess.Popen(
            [*before, *words],
            **{"stdout": output, "stderr": errors, "cwd": ROOT, **settings},  # type: ignore[call-overload]
            env=_variables(environment),
            start_new_session=True,
        )
    return RunningProcess(process, log)


def _variables(environment: Mapping[str, str | None] | None) -> dict[str, str]:
    """Return all variables of a process."""
    variables = {**os.environ, **ENVIRONMENT, **(environment or {})}
    return {name: value for name, value in variables.items() if value is not None}
