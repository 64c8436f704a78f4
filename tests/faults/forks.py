"""Recipes and commands in forks of one warm process, which has imported torch, numba and fastpsl and started no thread.

A fork starts in milliseconds where an interpreter takes seconds to import torch. Each leads a session of its own, so that a signal to
its group reaches all that it started, and dies with the server. What hangs on the interpreter itself (imports, what it does with a pipe
that broke at its exit) needs a process of its own: `fresh`.
"""

import atexit
import contextlib
import ctypes
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONPATH": str(ROOT),
    "COLUMNS": "200",
}
# What recipes and the command line import sooner or later.
PRELOADED = [
    "torch", "torchvision", "numba", "PIL.Image", "matplotlib.pyplot", "torch.utils.tensorboard", "sklearn.metrics", "scipy.sparse",
    "fastpsl.cli", "fastpsl.launch", "fastpsl.trainer", "fastpsl.run", "fastpsl.beton_command", "fastpsl.iic_job", "fastpsl.uic_job",
    "fastpsl.sslpp_job", "fastpsl.tasks.jigsaw", "fastpsl.tasks.moco", "fastpsl.tasks.rotnet", "fastpsl.pipelines.loader",
    "fastpsl.pipelines.decoders.ffcv", "fastpsl.pipelines.beton_write", "fastpsl.pipelines.beton_verify", "fastpsl.pipelines.sources",
]  # fmt: skip
_PR_SET_PDEATHSIG = 1
Command = Sequence[object]  # (recipe's file, its options...), or ("fastpsl", a command...)


def output_of(log: Path) -> Path:
    """Where the standard output of a process goes whose errors go to `log`."""
    return log.with_suffix(".out")


class Ended(NamedTuple):
    """How a process ended: its exit code (below 0 the signal that ended it, None where it was killed at its time limit), and what it wrote:
    its output, then its errors.
    """

    code: int | None
    output: str
    seconds: float


class Started:
    """A process under way whose errors go to the file `log`, and its output to a file beside it."""

    def __init__(self, process: ForkServerProcess | subprocess.Popen[bytes], log: Path):
        self._process, self.log, self._since = process, log, time.monotonic()
        assert process.pid
        self.pid = process.pid

    def poll(self) -> int | None:
        """The exit code, or None while the process runs."""
        return self._process.poll() if isinstance(self._process, subprocess.Popen) else self._process.exitcode

    def send(self, number: signal.Signals, group: bool = True) -> None:
        """A signal to the process and, for group, to all that it started; nothing happens where none is left."""
        with contextlib.suppress(ProcessLookupError):
            if group:
                with contextlib.suppress(ProcessLookupError):  # it has not made its session yet
                    os.killpg(self.pid, number)
                    return
            os.kill(self.pid, number)

    def wait(self, limit_s: float = 120) -> Ended:
        """Wait for the end. What has not ended after so many seconds is killed with its group, its code is None."""
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
        return Ended(code, "".join(texts), seconds)

    def wait_until(self, happened: Callable[[], object], limit_s: float = 120) -> bool:
        """Look often whether something has happened; False where the process ended, or the time, before it did."""
        deadline = time.monotonic() + limit_s
        while self.poll() is None and time.monotonic() < deadline:
            if happened():
                return True
            time.sleep(0.001)
        return bool(happened())

    def others_left(self) -> bool:
        """Whether a process of its group lives on."""
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
) -> Started:
    """Run a command in a fork of the warm process.

    environment: variables to set, or with None to remove. prepare: called in the fork before the command (limits, mounts); it must be
    picklable, such as a function of a module or a `partial` of one.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = (list(map(str, command)), str(log), dict(environment or {}), prepare)
    process = _warm().Process(target=_run, args=arguments, daemon=True)
    process.start()
    return Started(process, log)


def fresh(
    command: Command,
    log: Path,
    environment: Mapping[str, str | None] | None = None,
    before: Sequence[str] = (),
    **settings: object,
) -> Started:
    """Run a command in an interpreter of its own; before: words in front of it (torchrun, setpriv). settings: of Popen."""
    log.parent.mkdir(parents=True, exist_ok=True)
    script, *options = map(str, command)
    if script == "fastpsl":
        words = [sys.executable, "-c", "from fastpsl.cli import main; main()", *options]
    else:
        words = [sys.executable, script, *options]
    variables = {**os.environ, **ENVIRONMENT, **(environment or {})}
    with open(output_of(log), "ab") as output, open(log, "ab") as errors:
        process = subprocess.Popen(
            [*before, *words],
            **{"stdout": output, "stderr": errors, "cwd": ROOT, **settings},  # type: ignore[call-overload]
            env={name: value for name, value in variables.items() if value is not None},
            start_new_session=True,
        )
    return Started(process, log)


def _warm() -> multiprocessing.context.ForkServerContext:
    """The context whose server forks; it starts with the first process, unless another test has started one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours = dict(os.environ)
    os.environ.update(ENVIRONMENT)  # before torch is imported there
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(ours)
    return context


def _run(
    command: list[str],
    log: str,
    environment: dict[str, str | None],
    prepare: Callable[[], object] | None,
) -> NoReturn:
    """In the fork: become a process of its own, and end as an interpreter does."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.closerange(3, 1024)  # the server's: it would live on for their sake
    for number, path in ((1, output_of(Path(log))), (2, log)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, value in {**ENVIRONMENT, **environment}.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    tempfile.tempdir = None  # of the parent's TMPDIR
    os.chdir(ROOT)
    code = 1
    try:
        if prepare:
            prepare()
        sys.argv = command
        if command[0] == "fastpsl":
            from fastpsl.cli import main

            main()
        else:
            import torch

            sys.path.insert(0, str(Path(command[0]).parent))
            torch.set_num_threads(1)
            runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 130
    except BaseException:  # noqa: BLE001  (as the interpreter would)
        traceback.print_exc()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 120
    os._exit(code)
