"""Processes forked from a server that has imported torch, numba and fastpsl, which takes 5 s of a core."""

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
from importlib import import_module
from multiprocessing import resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from fastpsl.engine.distributed import leave_world
from tests import cheaper, seeds

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.warm_imports"])
_PR_SET_PDEATHSIG = 1
_COMMANDS = {"fastpsl": "fastpsl.cli", "torchrun": "torch.distributed.run"}


def spawn(
    command: Sequence[str],
    environment: Mapping[str, str],
    cwd: Path,
    output: Path,
    errors: Path,
    prepare: Callable[[], object] | None = None,
) -> ForkServerProcess:
    """Run a script, `fastpsl` or `torchrun` in a fork of the server.

    The process leads a new session and dies with the server. `prepare`, which is picklable, is called before
    the command, to set limits or mounts.
    """
    arguments = (list(command), dict(environment), cwd, (output, errors), prepare)
    process = CONTEXT.Process(target=_become, args=arguments, daemon=True)
    process.start()
    return process


class Running:
    """A script or program that runs in processes of its own, each of which leads a new session.

    `ranks` processes find each other as under torchrun, but there is no agent; 0 is one plain process. If
    `together`, errors go to the output. `prepare` is called in each process first.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        cwd: Path,
        ranks: int = 0,
        together: bool = False,
        prepare: Callable[[], object] | None = None,
    ):
        self._folder = tempfile.TemporaryDirectory()
        output = Path(self._folder.name, "out")
        self._texts = output, output if together else output.with_name("err")
        self._processes = [
            spawn(command, {**environment, **variables}, cwd, *self._texts, prepare)
            for variables in (rank_variables(ranks) if ranks else [{}])
        ]

    @property
    def pid(self) -> int:
        """The id of the only process."""
        (process,) = self._processes
        assert process.pid
        return process.pid

    @property
    def code(self) -> int | None:
        """The first exit code that is not 0, or minus the signal's number; None while any process runs."""
        codes = [process.exitcode for process in self._processes]
        return None if None in codes else next((code for code in codes if code), 0)

    @property
    def texts(self) -> list[str]:
        """The output and the errors so far."""
        return [path.read_text(errors="replace") if path.exists() else "" for path in self._texts]

    def wait(self, timeout_s: float) -> tuple[int, str, str]:
        """Wait for the end, and return the exit code, the output and the errors. Kill what runs longer."""
        deadline = time.monotonic() + timeout_s
        for process in self._processes:
            process.join(max(deadline - time.monotonic(), 0.0))
        code = self.code
        if code is None:
            for process in self._processes:
                process.kill()
                process.join()
        out, err = self.texts
        if code is None:
            raise subprocess.TimeoutExpired(self._texts, timeout_s, out, err)
        return code, out, err


def on_ranks(function: Callable[..., None], arguments: tuple[Any, ...], num_ranks: int) -> None:
    """Call `function(rank, *arguments)` in `num_ranks` processes at once, of which none may fail."""
    torch.multiprocessing.start_processes(
        _call_as_test, (function, arguments, seeds.added), num_ranks, start_method="forkserver"
    )


def results_of_ranks(function: Callable[[int, int], object], num_ranks: int, folder: Path) -> list[Any]:
    """Call `function(rank, num_ranks)` in processes on the CPU; return its results, rank by rank."""
    on_ranks(_save_result, (function, num_ranks, folder), num_ranks)
    return [torch.load(folder / f"{rank}.pt") for rank in range(num_ranks)]


def _save_result(rank: int, function: Callable[[int, int], object], num_ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    torch.save(function(rank, num_ranks), folder / f"{rank}.pt")
    leave_world()


def _call_as_test(rank: int, function: Callable[..., None], arguments: tuple[Any, ...], added: int) -> None:
    """Call the function with the test process's cheaper networks and seeds."""
    cheaper.for_good()
    seeds.add_to_seeds(added)
    function(rank, *arguments)


def reserved_port() -> socket.socket:
    """Return a bound socket that never listens: a server may take its port, and no other program gets it."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved


_reserved = list[socket.socket]()  # until the process ends


def rank_variables(ranks: int) -> list[dict[str, str]]:
    """Return torchrun's variables for each rank. Rank 0 takes the port a second later."""
    _reserved.append(reserved := reserved_port())
    port = reserved.getsockname()[1]
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
    """Run the command as if it were all that this process ever did, and exit as an interpreter does."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.closerange(3, 1024)  # the server's descriptors, which would keep it alive
    # As in an interpreter, multiprocessing may start processes, with a resource tracker of their own.
    resource_tracker._resource_tracker._fd = None  # type: ignore[attr-defined]
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    for number, path in enumerate(texts, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # forget the server's TMPDIR
    os.chdir(cwd)
    # A pytest worker ignores the signal, and so does its server.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        if prepare:
            prepare()
        sys.argv = command
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
        if command[0] in _COMMANDS:
            import_module(_COMMANDS[command[0]]).main()
        else:
            sys.path.insert(0, str(Path(command[0]).parent))
            runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 130
    except BaseException:  # noqa: BLE001  (the interpreter does the same)
        traceback.print_exc()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 120
    os._exit(code)
