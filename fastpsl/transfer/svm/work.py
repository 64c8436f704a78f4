"""Many pieces of work of one process each: shared by processes and ranks, each outcome a small file that is not made twice."""

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_sentinel
from pathlib import Path
from typing import Any, Protocol

from fastpsl.engine.distributed import World
from fastpsl.engine.progress import Progress
from fastpsl.pipelines.files.atomic import write_atomically

_LOOK_EVERY_S = 1.0
_END = object()


class Work(Protocol):
    """Can be sent to another process."""

    def outcome(self) -> dict[str, Any]:
        """Plain values, the same ones in every process."""


def work_through(
    wanted: Mapping[Path, Work], num_processes: int, world: World, unit: str
) -> list[dict[str, Any]] | None:
    """The outcomes, in the order of `wanted`, of rank 0; None on the others, which leave when their share is done.

    wanted: each file (JSON) and the work whose outcome it is to hold; those that are there are not made again. Ranks take equal
    shares, each in `num_processes` processes, numerical libraries with one thread each, so that files are the same
    bytes for any number of processes and ranks. ValueError where a process was ended from outside.
    """
    for path in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
    # Of all, not of those that are missing: a rank that looks later finds less missing.
    share = list(wanted.items())[_share(len(wanted), world)]
    mine = {path: work for path, work in share if not path.exists()}
    missing = [path for path in wanted if not path.exists()]
    done = _one_by_one(mine) if num_processes == 1 else _by_processes(mine, num_processes)
    if world.rank != 0:
        for _ in done:
            pass
        return None
    with Progress(unit, len(missing)) as progress:
        while (num_done := sum(path.exists() for path in missing)) < len(missing):
            if num_done:
                progress.update(num_done, 0)
            if (
                next(done, _END) is _END
            ):  # its own share is done, others' are not (torchrun ends it where one fails)
                time.sleep(_LOOK_EVERY_S)
    for _ in done:  # the end of its processes
        pass
    return [json.loads(path.read_text()) for path in wanted]


def _share(num: int, world: World) -> slice:
    """Neighbours, as in `_by_processes`."""
    return slice(num * world.rank // world.size, num * (world.rank + 1) // world.size)


def default_processes(world: World) -> int:
    """This rank's share of the machine's cores."""
    return max(1, len(os.sched_getaffinity(0)) // world.local_size)


def _one_by_one(wanted: Mapping[Path, Work]) -> Iterator[None]:
    for path, work in wanted.items():
        _make(path, work)
        yield


def _by_processes(wanted: Mapping[Path, Work], num_processes: int) -> Iterator[None]:
    """Yields now and then. Processes are spawned: a fork of one with threads may hang."""
    if not wanted:
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(num_processes, len(wanted)), context, _end_with_parent)
    try:
        # Neighbours go together, as they may share what is costly to make; two parts a process even them out.
        pairs, size = list(wanted.items()), max(1, len(wanted) // (2 * num_processes))
        under_way = {
            pool.submit(_make_all, pairs[start : start + size]) for start in range(0, len(pairs), size)
        }
        while under_way:
            done, under_way = wait(under_way, _LOOK_EVERY_S, FIRST_COMPLETED)
            for future in done:
                future.result()
            yield
    except BaseException as error:
        for process in multiprocessing.active_children():
            process.terminate()
        if not isinstance(error, BrokenProcessPool):
            raise
        raise ValueError(
            f"one of {num_processes} processes was ended from outside, most likely for want of memory: give fewer "
            f"--num-processes; what is done is kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _make_all(pairs: Sequence[tuple[Path, Work]]) -> None:
    for path, work in pairs:
        _make(path, work)


def _make(path: Path, work: Work) -> None:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        outcome = work.outcome()
    write_atomically(path, (json.dumps(outcome) + "\n").encode())


def _end_with_parent() -> None:
    """Of a process of the pool: none outlives the one that asked for it, and a terminal's Ctrl-C is that one's."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        wait_for_sentinel([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
