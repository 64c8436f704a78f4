"""Tasks of one process each, shared by processes and ranks: each outcome is a small file that is not made twice."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from fastpsl.engine.console import Progress
from fastpsl.engine.distributed import World
from fastpsl.pipelines.files.atomic import write_atomically

# joblib is imported where it is used: that takes half a second.

_LOOK_EVERY_S = 1.0
_END = object()


class SvmTask(Protocol):
    """A task that can be sent to another process."""

    def outcome(self) -> dict[str, Any]:
        """Return plain values, the same ones in every process."""


def run_resumable(
    wanted: Mapping[Path, SvmTask], num_processes: int, world: World, unit: str
) -> list[dict[str, Any]] | None:
    """Return the outcomes in the order of `wanted` on rank 0; None on the others, which leave at the end of their share.

    Ranks take equal shares, each in `num_processes` processes. Numerical libraries have one thread each, so that
    files are the same bytes for any number of processes and ranks.

    Args:
        wanted: each file (JSON) and the task whose outcome it is to hold. Those that are there are not made again.
        unit: of the progress line.

    Raises:
        ValueError: where a process was ended from outside.
    """
    for path in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
    # Of all, not of those that are missing: a rank that looks later finds less missing.
    share = list(wanted.items())[_share(len(wanted), world)]
    mine = {path: task for path, task in share if not path.exists()}
    missing = [path for path in wanted if not path.exists()]
    done = _run(mine, num_processes)
    if world.rank != 0:
        for _ in done:
            pass
        return None
    with Progress(unit, len(missing)) as progress:
        while (num_done := sum(path.exists() for path in missing)) < len(missing):
            if num_done:
                progress.update(num_done, 0)
            # Where its own share is done and others' are not, it waits (torchrun ends it where one fails).
            if next(done, _END) is _END:
                time.sleep(_LOOK_EVERY_S)
    for _ in done:  # the end of its processes
        pass
    return [json.loads(path.read_text()) for path in wanted]


def default_processes(world: World) -> int:
    """Return this rank's share of the machine's cores."""
    return max(1, len(os.sched_getaffinity(0)) // world.local_size)


def _share(num: int, world: World) -> slice:
    """Return neighbours, which may share what is costly to make."""
    return slice(num * world.rank // world.size, num * (world.rank + 1) // world.size)


def _run(wanted: Mapping[Path, SvmTask], num_processes: int) -> Iterator[None]:
    """Yield after each task, as it is done; of one process in this very one."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    if num_processes == 1:
        for path, task in wanted.items():
            _make(path, task)
            yield
    if num_processes == 1 or not wanted:
        return
    # Task by task in their order, so that processes are at neighbours.
    run = Parallel(
        min(num_processes, len(wanted)),
        return_as="generator_unordered",
        batch_size=1,
        initializer=_end_with_parent,
        initargs=(os.getpid(),),
    )
    try:
        yield from run(delayed(_make)(path, task) for path, task in wanted.items())
    except TerminatedWorkerError as error:
        raise ValueError(
            f"one of {num_processes} processes was ended from outside, most likely for want of memory: "
            f"give fewer --num-processes; what is done is kept"
        ) from error
    finally:
        # joblib would keep them for five minutes, and what they hold.
        get_reusable_executor().shutdown(kill_workers=True)


def _make(path: Path, task: SvmTask) -> None:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        outcome = task.outcome()
    write_atomically(path, (json.dumps(outcome) + "\n").encode())


def _end_with_parent(parent: int) -> None:
    """Leave a terminal's Ctrl-C to the parent process, and end this one where that one has ended.

    joblib's go on with what they were given, and then wait for five minutes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_EVERY_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
