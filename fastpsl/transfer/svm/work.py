"""Run small tasks on processes and ranks, and keep each outcome in a file that is not computed again."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from fastpsl.console.screen import Progress
from fastpsl.engine.distributed import World
from fastpsl.files.atomic import write_atomically

# joblib is imported where it is used, because the import takes half a second.

_LOOK_EVERY_S = 1.0
_END = object()


class SvmTask(Protocol):
    """A task that can be sent to another process."""

    def outcome(self) -> dict[str, Any]:
        """Return plain values, which are equal in every process."""


def run_resumable(
    wanted: Mapping[Path, SvmTask], num_processes: int, world: World, unit: str
) -> list[dict[str, Any]] | None:
    """Compute the outcomes that are not in their files yet.

    Ranks take equal shares. Numerical libraries have one thread each, so that files have the same bytes for
    any number of processes and ranks.
    """
    for path in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
    # A share of all tasks, because the missing ones decrease while ranks look at them.
    share = list(wanted.items())[_share(len(wanted), world)]
    todo = {path: task for path, task in share if not path.exists()}
    missing = [path for path in wanted if not path.exists()]
    done = _run(todo, num_processes)
    if world.rank != 0:
        for _ in done:
            pass
        return None
    with Progress(unit, len(missing)) as progress:
        while (num_done := sum(path.exists() for path in missing)) < len(missing):
            if num_done:
                progress.update(num_done, 0)
            # Rank 0 waits for the other ranks' shares; torchrun ends it if one of them fails.
            if next(done, _END) is _END:
                time.sleep(_LOOK_EVERY_S)
    for _ in done:  # because the generator ends its processes at last
        pass
    return [json.loads(path.read_text()) for path in wanted]


def _share(num: int, world: World) -> slice:
    """Return this rank's tasks; they are neighbours, because these may share features that are costly to
    read.
    """
    return slice(num * world.rank // world.size, num * (world.rank + 1) // world.size)


def _run(wanted: Mapping[Path, SvmTask], num_processes: int) -> Iterator[None]:
    """Run the tasks and yield after each; one process means this very one."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    if num_processes == 1:
        for path, task in wanted.items():
            _make(path, task)
            yield
    if num_processes == 1 or not wanted:
        return
    # Batches of one task in order, so that processes work on neighbours.
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
            f"one of {num_processes} processes was ended from outside, most likely for want of memory; "
            f"repeat the command with fewer --workers (what is done is kept)"
        ) from error
    finally:
        # joblib would keep the processes and their memory for five minutes.
        get_reusable_executor().shutdown(kill_workers=True)


def _make(path: Path, task: SvmTask) -> None:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        outcome = task.outcome()
    write_atomically(path, (json.dumps(outcome) + "\n").encode())


def _end_with_parent(parent: int) -> None:
    """Leave a terminal's Ctrl-C to the parent process, and end this process when the parent has ended.

    joblib's processes would finish their tasks, and then wait for five minutes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_EVERY_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
