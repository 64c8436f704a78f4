"""Several processes of a recipe on this machine, started by torch's elastic launcher."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import FrameType

from fastpsl.console.progress import operation
from fastpsl.console.terminal import EXIT_CRASHED, EXIT_FINISHED, EXIT_PREEMPTED
from fastpsl.files.workers import usable_cores
from fastpsl.scripts.command_line import COMMAND

# Ranks stop at a step's end upon these, as a recipe of one process does.
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def run_ranks(command: Sequence[str], num_ranks: int, name: str) -> int:
    """Run a Python script in several processes, as `torchrun --standalone` does; messages begin with `name`.

    Signals are passed on to the processes, which stop by themselves. The launcher's own log is silent: the
    processes say why they stop.
    """
    with operation(f"starting {num_ranks} processes"):
        import torch
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _require_places(num_ranks, torch.cuda.device_count(), name)
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ[COMMAND] = name
    if num_ranks > 1:
        os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or "1"  # as torchrun does
    config = LaunchConfig(
        1, 1, num_ranks, run_id=str(os.getpid()), rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        rdzv_configs={"timeout": 900}, max_restarts=0, monitor_interval=0.1,
    )  # fmt: skip
    if "signals_to_handle" in {field.name for field in fields(config)}:  # since torch 2.9
        config.signals_to_handle = "SIGQUIT"
    try:
        with _forwarding():
            elastic_launch(config, sys.executable)("-u", *command)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        if own := [code for code in codes if code > 0]:
            return own[0]
        killer = signal.Signals(-codes[0]).name  # a code below 0 is a signal's number
        print(f"{name}: a process was killed by {killer}", file=sys.stderr, flush=True)
        return EXIT_CRASHED
    except SignalException:  # an older torch has stopped the processes itself
        return EXIT_PREEMPTED
    return EXIT_FINISHED


def _require_places(num_ranks: int, num_gpus: int, name: str) -> None:
    """Check that each process has a GPU, or a core where there is no GPU, which is told."""
    most = num_gpus or usable_cores()
    if num_ranks > most:
        found = f"{num_gpus} GPUs" if num_gpus else f"no GPU that torch can use, and {most} cores"
        raise ValueError(f"--gpus {num_ranks}: this machine has {found}; give {most} or less")
    if not num_gpus:
        line = f"{name}: no GPU that torch can use is here; {num_ranks} processes run on the CPU"
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _forwarding() -> Iterator[None]:
    """Pass the signals of this process on to its children, which are in sessions of their own.

    Without children, a signal acts on this process itself, unless one was passed on before.
    """
    before = {number: signal.getsignal(number) for number in _FORWARDED}
    has_forwarded = False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal has_forwarded
        children = _children()
        if not children and not has_forwarded:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)
        for child in children:
            has_forwarded = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _children() -> list[int]:
    """Return the processes that any thread of this one has started."""
    children = list[int]()
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            children += map(int, path.read_text().split())
    return children
