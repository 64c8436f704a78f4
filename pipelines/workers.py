"""A few daemon threads and a queue.

Not a ThreadPoolExecutor: the interpreter joins its threads without a limit at exit, so a thread that is stuck (a read
from storage that hangs) would keep the process from ending after the error has been raised in the consumer.
"""

import os
import threading
import time
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

_Queue = SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None]
_EXIT_LIMIT_S = 5.0


def default_num_threads() -> int:
    """This process's share of its cores, under torchrun too."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class Workers:
    """`num_threads` threads that run what is submitted, in order. What is submitted must not raise."""

    def __init__(self, num_threads: int, name: str) -> None:
        self._queue: _Queue = SimpleQueue()
        # The threads hold the queue, never this object: dropping it ends them, as the interpreter's exit does.
        self._threads = [
            threading.Thread(target=_work, args=(self._queue,), name=f"{name}-{i}", daemon=True)
            for i in range(num_threads)
        ]
        self._end = weakref.finalize(self, _end, self._queue, self._threads, _EXIT_LIMIT_S)
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        self._queue.put((function, arguments))

    @property
    def closed(self) -> bool:
        return not self._end.alive

    def close(self, limit_s: float) -> None:
        """Lets the threads finish what is queued and joins them, for `limit_s` seconds together at most."""
        if self._end.detach() is not None:
            _end(self._queue, self._threads, limit_s)


def _work(queue: _Queue) -> None:
    while (item := queue.get()) is not None:
        function, arguments = item
        function(*arguments)
        del item, function, arguments  # an idle thread keeps no batch alive


def _end(queue: _Queue, threads: list[threading.Thread], limit_s: float) -> None:
    for _ in threads:
        queue.put(None)
    deadline = time.monotonic() + limit_s
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
