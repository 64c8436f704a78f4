"""Work on frozen features that takes minutes: tasks on processes and ranks, each outcome in a file.

A task's outcome is not computed again. joblib takes half a second to import, so it is imported where it is
used.
"""

import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastpsl.console.screen import Progress
from fastpsl.engine.distributed import World
from fastpsl.files.atomic import write_atomically
from fastpsl.files.json_records import COUNT, NUMBER, Form, NoRecord, maybe
from fastpsl.files.system_errors import input_errors

# All outcomes have both counts. Those of tasks that choose a cost have further fields.
_OUTCOME = Form("outcome", {
    "fits": COUNT, "not_converged": COUNT, "ap": maybe(NUMBER), "cost": maybe(NUMBER),
    "accuracy": maybe(NUMBER), "cross_validated_accuracy": maybe(NUMBER),
})  # fmt: skip
_LOOK_EVERY_S, _END = 1.0, object()


class Task(Protocol):
    """A task that can be sent to another process."""

    def outcome(self) -> dict[str, Any]:
        """Return plain values, which are equal in every process."""


def run_resumable(
    wanted: Mapping[Path, Task], num_processes: int, world: World, unit: str
) -> list[dict[str, Any]] | None:
    """Compute the outcomes that are not in their files yet; return all on rank 0, None on the others.

    Ranks take equal shares. Numerical libraries have one thread each, so that files have the same bytes for
    any number of processes and ranks.
    """
    for path in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
    # A share of all tasks, because the missing ones decrease while ranks look at them. They are neighbours,
    # because these may share features that are costly to read.
    first, last = (len(wanted) * rank // world.size for rank in (world.rank, world.rank + 1))
    share = {path: task for path, task in list(wanted.items())[first:last] if not path.exists()}
    missing = [path for path in wanted if not path.exists()]
    done = _run(share, num_processes)
    if world.rank != 0:
        list(done)
        return None
    with Progress("", unit, len(missing)) as progress:
        while (num_done := sum(path.exists() for path in missing)) < len(missing):
            if num_done:
                progress.update(num_done, 0)
            # Rank 0 waits for the other ranks' shares; torchrun ends it if one of them fails.
            if next(done, _END) is _END:
                time.sleep(_LOOK_EVERY_S)
    list(done)  # because the generator ends its processes at last
    return list(map(_read_outcome, wanted))


def _read_outcome(path: Path) -> dict[str, Any]:
    with input_errors(path):
        try:
            outcome: dict[str, Any] = _OUTCOME.read(path)
        except NoRecord as error:
            raise ValueError(
                f"{error}, no outcome of a classifier: remove it, and give the command again"
            ) from None
    return outcome


def _run(wanted: Mapping[Path, Task], num_processes: int) -> Iterator[None]:
    """Run the tasks and yield after each; one process means this very one."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    num_processes = min(num_processes, len(wanted))
    if num_processes <= 1:
        for path, task in wanted.items():
            _make(path, task)
            yield
        return
    # Batches of one task in order, so that processes work on neighbours.
    run = Parallel(
        num_processes, return_as="generator_unordered", batch_size=1, initializer=_end_with_parent,
        initargs=(os.getpid(),),
    )  # fmt: skip
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


def _make(path: Path, task: Task) -> None:
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # because tasks count them
        outcome = task.outcome()
    write_atomically(path, (json.dumps(outcome) + "\n").encode())


def _end_with_parent(parent: int) -> None:
    """Leave a terminal's Ctrl-C to the parent process, and end when it has ended: joblib's would wait on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_EVERY_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def in_own_span(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Write rows [n, D] as products of coordinates [n, min(n, D)] and an orthonormal basis [D, min(n, D)].

    It is a QR of the transpose. The coordinates are triangular, and the solver skips zeros. The rows are
    overwritten.
    """
    from scipy.linalg import qr

    basis, coordinates = qr(features.T, overwrite_a=True, mode="economic", check_finite=False)
    return np.ascontiguousarray(coordinates.T), basis
