"""Processes forked from a server that has imported torch, numba and fastpsl: a fresh interpreter spends 5 s of a core on that.

The server imports `tests.warm_imports` and starts no thread. Its children are fresh interpreters in all but one thing: what an import
reads from the environment is the server's. A test of that starts `sys.executable`.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.multiprocessing

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.warm_imports"])


class Running:
    """A script that runs in processes of its own, each the leader of a new session.

    Args:
        command: the script and its arguments, as in `sys.argv`.
        environment: the processes' variables, all of them.
        cwd: their working directory.
        ranks: 0 for one process, as `python` starts it; else so many that find each other as torchrun's do. No agent watches over
            them: what it does with signals and with a rank that fails is tested with torchrun itself.
        together: whether errors go where the output goes.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        cwd: Path,
        ranks: int = 0,
        together: bool = False,
    ):
        self._folder = tempfile.TemporaryDirectory()
        self._texts = [
            os.path.join(self._folder.name, name) for name in ("out", "out" if together else "err")
        ]
        self._processes = [
            _CONTEXT.Process(target=_become, args=(list(command), {**environment, **own}, cwd, self._texts))
            for own in (_rank_variables(ranks) if ranks else [{}])
        ]
        for process in self._processes:
            process.start()

    @property
    def pid(self) -> int:
        """Of the only process."""
        (process,) = self._processes
        assert process.pid
        return process.pid

    @property
    def code(self) -> int | None:
        """The first exit code that is not 0, minus the signal's number where one ended the process; None while any runs."""
        codes = [process.exitcode for process in self._processes]
        return None if None in codes else next((code for code in codes if code), 0)

    def wait(self, timeout_s: float) -> tuple[int, str, str]:
        """Wait for the end. Returns (exit code, output, errors).

        Raises:
            subprocess.TimeoutExpired: it ran longer, and was killed.
        """
        deadline = time.monotonic() + timeout_s
        for process in self._processes:
            process.join(max(deadline - time.monotonic(), 0.0))
        code = self.code
        if code is None:
            for process in self._processes:
                process.kill()
                process.join()
        texts = [
            Path(name).read_text(errors="replace") if os.path.exists(name) else "" for name in self._texts
        ]
        if code is None:
            raise subprocess.TimeoutExpired(self._texts, timeout_s, *texts)
        return code, texts[0], texts[1]


def on_ranks(function: Callable[..., None], arguments: tuple[Any, ...], num_ranks: int) -> None:
    """Call `function(rank, *arguments)` in so many processes at once.

    Raises:
        torch.multiprocessing.ProcessException: one of them raised or died.
    """
    torch.multiprocessing.start_processes(function, arguments, num_ranks, start_method="forkserver")


def _rank_variables(ranks: int) -> list[dict[str, str]]:
    """What torchrun tells each rank. The port is free now, and rank 0 listens on it a second later."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    size |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [size | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _become(command: list[str], environment: dict[str, str], cwd: Path, texts: Sequence[str]) -> None:
    """Run the script as the only thing that this process ever did."""
    os.setsid()
    for number, name in enumerate(texts, 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a pytest worker ignores it, and so does its server
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
