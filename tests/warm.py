"""Processes forked from a server that has imported torch, numba and fastpsl: a fresh interpreter spends 5 s of a core on that.

The server imports `tests.warm_imports` and starts no thread. Its children are fresh interpreters in all but one thing: what an import
reads from the environment is the server's. A test of that starts `sys.executable`.
"""

import atexit
import ctypes
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch.multiprocessing

from tests import cheaper, seeds

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.warm_imports"])
_PR_SET_PDEATHSIG = 1


def spawn(
    command: Sequence[str],
    environment: Mapping[str, str],
    cwd: Path,
    output: Path,
    errors: Path,
    prepare: Callable[[], object] | None = None,
) -> ForkServerProcess:
    """Run a script, or the command line, in a fork of the server: the leader of a new session, which dies with the server.

    Args:
        command: the script's file and its arguments, as in `sys.argv`; "fastpsl" and its arguments for the command line.
        environment: the process's variables, all of them; OMP_NUM_THREADS is one.
        output: the file to which standard output is appended.
        errors: the same for standard error.
        prepare: called in the fork before the command (limits, mounts); picklable, such as a function of a module.
    """
    arguments = (list(command), dict(environment), cwd, (output, errors), prepare)
    process = CONTEXT.Process(target=_become, args=arguments, daemon=True)
    process.start()
    return process


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
        output = Path(self._folder.name, "out")
        self._texts = output, output if together else output.with_name("err")
        self._processes = [
            spawn(command, {**environment, **own}, cwd, *self._texts)
            for own in (rank_variables(ranks) if ranks else [{}])
        ]

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
        texts = [path.read_text(errors="replace") if path.exists() else "" for path in self._texts]
        if code is None:
            raise subprocess.TimeoutExpired(self._texts, timeout_s, *texts)
        return code, texts[0], texts[1]


def on_ranks(function: Callable[..., None], arguments: tuple[Any, ...], num_ranks: int) -> None:
    """Call `function(rank, *arguments)` in so many processes at once.

    Raises:
        torch.multiprocessing.ProcessException: one of them raised or died.
    """
    torch.multiprocessing.start_processes(
        _as_a_test, (function, arguments, seeds.added), num_ranks, start_method="forkserver"
    )


def _as_a_test(rank: int, function: Callable[..., None], arguments: tuple[Any, ...], added: int) -> None:
    """With the networks and the seeds of the process that compares them with its own."""
    cheaper.make_cheaper(pytest.MonkeyPatch())
    seeds.add_to_seeds(added)
    function(rank, *arguments)


def rank_variables(ranks: int) -> list[dict[str, str]]:
    """What torchrun tells each rank. The port is free now, and rank 0 listens on it a second later."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    size |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [size | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _become(
    command: list[str],
    environment: dict[str, str],
    cwd: Path,
    texts: Sequence[Path],
    prepare: Callable[[], object] | None,
) -> NoReturn:
    """Run the command as the only thing that this process ever did, and end as an interpreter does."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.closerange(3, 1024)  # the server's: it would live on for their sake
    for number, path in enumerate(texts, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # of the server's TMPDIR
    os.chdir(cwd)
    # A pytest worker ignores it, and so does its server.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        if prepare:
            prepare()
        sys.argv = command
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
        if command[0] == "fastpsl":
            from fastpsl.cli import main

            main()
        else:
            sys.path.insert(0, str(Path(command[0]).parent))
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
