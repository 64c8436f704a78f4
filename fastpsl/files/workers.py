"""Daemon threads with a queue, and a map in order that runs on them.

ThreadPoolExecutor does not serve, because the interpreter joins its threads without a limit at exit. A stuck
thread (a read from storage that hangs) would keep the process alive after the consumer has raised its error.
"""

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from fastpsl.console.terminal import number_in
from fastpsl.files.atomic import Uncopyable

Item = TypeVar("Item")
Result = TypeVar("Result")
_Queue = SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None]
# A thread that hangs in a read would be joined for ever. After Ctrl-C, people wait for the second limit,
# which is shorter. Neither was measured: an image takes milliseconds.
_EXIT_LIMIT_S, _LEAVING_LIMIT_S = 5.0, 1.0
_LEFT_TO_OTHERS = 8  # threads, where no more can be started, for what starts some later, such as torch
_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_GROUP = 8  # items per submission: single ones cost 0.1 ms of an image's 0.8
_WINDOW = 3  # groups in flight per thread, so that a slow image in front does not stop the others at once


def usable_cores() -> int:
    """Return the number of CPU cores for this process, by affinity and the container's quota; at least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def cpu_quota() -> float | None:
    """Return a container's share of the CPU in cores, or None without a limit."""
    quotas = []
    for group in control_groups("cpu"):  # a group above may allow less
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # versions 2 and 1
            with suppress(OSError, ValueError):
                quota, period = " ".join((group / name).read_text() for name in names).split()
                if quota not in ("max", "-1"):
                    quotas.append(float(quota) / float(period))
    return min(quotas, default=None)


def control_groups(controller: str) -> list[Path]:
    """Return the folders of this process's control groups of a resource, and of all groups above them.

    A container's group may be the root here, although the process is told the host's path. So there may be no
    such folder.
    """
    paths = {_GROUPS: "/", _GROUPS / controller: "/"}  # of versions 2 and 1
    with suppress(OSError, ValueError):
        for line in _OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                paths[_GROUPS] = path
            elif controller in controllers.split(","):
                paths[_GROUPS / controller] = path
    folders = []
    for root, path in paths.items():
        parts = [] if ".." in path.split("/") else [part for part in path.split("/") if part]
        folders += [root.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
    return folders


def num_local_ranks() -> int:
    """Return the number of processes of this run on this machine, by torchrun's environment."""
    return number_in("LOCAL_WORLD_SIZE", 1)


def default_num_threads() -> int:
    """Return the number of cores for this process: its share, where it is one of several local ranks."""
    num_ranks = num_local_ranks()
    own = len(os.sched_getaffinity(0))
    if num_ranks > 1:
        # Some launchers bind each rank to cores of its own (numactl, torchrun --numa-binding). So the ranks
        # share the cores of the process that started them.
        try:
            shared = len(os.sched_getaffinity(os.getppid()))
        except OSError:  # it has ended, or may not be seen
            shared = own
        own = min(own, max(own, shared) // num_ranks)
    quota = cpu_quota()
    # The ranks share a container's quota in any case.
    return max(1, own if quota is None else min(own, int(quota / num_ranks)))


class Workers(Uncopyable):
    """A number of threads that run submitted functions, which must not raise, in order."""

    def __init__(self, num_threads: int, name: str) -> None:
        self.num_threads, self._name, self._process = num_threads, name, os.getpid()
        self._num_asked = num_threads
        self._queue: _Queue = SimpleQueue()
        self._lock, self._is_refused = threading.RLock(), False  # a deleted loader may close within `grow`
        self._threads: list[threading.Thread] = []
        # The threads refer to the queue, never to this object, so deleting it ends them, as does the exit.
        self._end = weakref.finalize(self, _end, self._queue, self._threads, _EXIT_LIMIT_S)
        for _ in range(num_threads):
            try:
                self._start_one()
            except RuntimeError as error:
                num_started = len(self._threads)
                self.close(_EXIT_LIMIT_S)
                raise ValueError(
                    f"{num_threads} threads {name} were asked for, and {num_started} could be started "
                    f"({error}): lower --workers, end other programs, or raise the limit of ulimit -u or of "
                    "the container (pids)"
                ) from error

    def _start_one(self) -> None:
        name = f"{self._name}-{len(self._threads)}"
        # A daemon, because the interpreter's exit waits for others without a limit.
        thread = threading.Thread(target=_work, args=(self._queue,), name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def grow(self, num_threads: int) -> None:
        """Have that many threads from now on, at least; fewer where the system refuses to start more."""
        if num_threads <= self.num_threads or self._is_refused:
            return
        with self._lock:
            while self.num_threads < num_threads and not self.closed and not self._is_refused:
                try:
                    self._start_one()
                except RuntimeError:  # a limit of the system: leave some to others
                    self._is_refused = True
                    num_left = max(self._num_asked, self.num_threads - _LEFT_TO_OTHERS)
                    for _ in range(self.num_threads - num_left):
                        self._queue.put(None)
                    self.num_threads = num_left
                else:
                    self.num_threads += 1

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        self._queue.put((function, arguments))

    def call(self, function: Callable[..., Result], *arguments: Any) -> "Future[Result]":
        """Submit a function that may raise, and return the future of its result."""
        future = Future[Result]()
        self.submit(settle, future, function, *arguments)
        return future

    @property
    def closed(self) -> bool:
        """Whether nothing runs any more, as in a process that was forked since: it has no such threads."""
        return not self._end.alive or self._process != os.getpid()

    def close(self, limit_s: float) -> None:
        """Let the threads finish the queue and join them, waiting at most `limit_s` seconds in all."""
        if self._process != os.getpid():  # a fork has no such threads, and maybe a lock that is held for ever
            return
        with self._lock:
            is_open = self._end.detach() is not None  # for one caller alone
        if is_open:
            _end(self._queue, self._threads, limit_s)


def _work(queue: _Queue) -> None:
    while (item := queue.get()) is not None:
        item[0](*item[1])
        del item  # an idle thread keeps no batch alive
    # Functions that the last items submitted are queued behind the end markers of all threads.
    num_ends = 0
    with suppress(Empty):
        while True:
            if (item := queue.get_nowait()) is None:
                num_ends += 1
            else:
                item[0](*item[1])
    for _ in range(num_ends):
        queue.put(None)


def settle(future: "Future[Result]", function: Callable[..., Result], *arguments: Any) -> None:
    """Call a function for a future, which gets the result or the error, unless it was cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function(*arguments)
    except BaseException as error:  # noqa: BLE001 - raised in who waits
        future.set_exception(error)
    else:
        future.set_result(result)


def _end(queue: _Queue, threads: list[threading.Thread], limit_s: float) -> None:
    for _ in threads:
        queue.put(None)
    deadline = time.monotonic() + limit_s
    for thread in threads:
        if thread is not threading.current_thread():  # a finalizer may run in any thread
            thread.join(max(0.0, deadline - time.monotonic()))


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_threads: int,
    name: str,
    *,
    group: int = _GROUP,
) -> Generator[tuple[Item, Result], None, None]:
    """Yield each item with its result, in order; the results are computed in threads.

    A bounded number of items is in memory at once. Leaving the iterator early, as Ctrl-C does, cancels the
    calls that have not begun. It waits one second for those that have, so a read that hangs does not block.
    Errors of `function` and of `items` are raised here.
    """
    waiting, source = deque[tuple[list[Item], Future[list[Result]]]](), iter(items)
    workers, is_left = Workers(num_threads, name), threading.Event()

    def call(group_items: list[Item]) -> list[Result]:
        return [function(item) for item in group_items if not is_left.is_set()]

    def first_pairs() -> Iterator[tuple[Item, Result]]:
        group_items, results = waiting.popleft()
        # Without a limit: Ctrl-C interrupts it where a read hangs.
        return zip(group_items, results.result(), strict=True)

    try:
        while group_items := list(islice(source, group)):
            waiting.append((group_items, workers.call(call, group_items)))
            if len(waiting) >= _WINDOW * num_threads:
                yield from first_pairs()
        while waiting:
            yield from first_pairs()
    finally:
        is_left.set()  # first, because `close` lets the threads finish the queue
        workers.close(_LEAVING_LIMIT_S)
