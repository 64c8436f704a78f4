"""A world of many ranks in one process: a thread each, whose collectives are PyTorch's own for its tests."""

import queue
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest import mock

import torch
import torch.distributed as dist
from torch.testing._internal.distributed import multi_threaded_pg

Result = TypeVar("Result")
_c10d: Any = torch._C._distributed_c10d
if not hasattr(multi_threaded_pg.ThreadLocalWorld, "comms"):  # which torch 2.11 asks for
    multi_threaded_pg.ThreadLocalWorld.comms = []  # type: ignore[method-assign,assignment]


class Messages:
    """The messages from rank to rank, which PyTorch's threads lack."""

    def __init__(self, errors: list[BaseException]):
        self._errors = errors
        self._queues = defaultdict[tuple[int, int], queue.SimpleQueue[torch.Tensor]](queue.SimpleQueue)

    def isend(self, tensor: torch.Tensor, dst: int) -> Any:
        self._queues[dist.get_rank(), dst].put(tensor.clone())
        return SimpleNamespace(wait=lambda: None)

    def recv(self, tensor: torch.Tensor, src: int) -> None:
        while not self._errors:
            with suppress(queue.Empty):
                tensor.copy_(self._queues[src, dist.get_rank()].get(timeout=0.1))
                return
        raise RuntimeError("another rank has failed")


def results_of_threads(function: Callable[[int, int], Result], num_ranks: int) -> list[Result]:
    """Call `function(rank, num_ranks)` in a group of threads on the CPU; return its results, rank by rank.

    The error of a rank ends the others and is raised. DistributedDataParallel does not run here, because its
    collectives are not called from Python.
    """
    num_torch_threads, store = torch.get_num_threads(), dist.HashStore()
    first_errors: list[BaseException] = []
    lock = threading.Lock()

    def run(rank: int) -> Result:
        try:
            dist.init_process_group("threaded", rank=rank, world_size=num_ranks, store=store)
            return function(rank, num_ranks)
        except BaseException as error:
            with lock:
                if not first_errors:
                    first_errors.append(error)
                    multi_threaded_pg.ProcessLocalGroup.exception_handle(error)
            raise
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    torch.set_num_threads(1)
    _c10d._set_thread_isolation_mode(True)
    multi_threaded_pg._install_threaded_pg()
    messages = Messages(first_errors)
    try:
        with (
            mock.patch.object(dist, "isend", messages.isend),
            mock.patch.object(dist, "recv", messages.recv),
            ThreadPoolExecutor(num_ranks) as pool,  # which waits for its threads first
        ):
            ranks = [pool.submit(run, rank) for rank in range(num_ranks)]
        if first_errors:
            raise first_errors[0]
        return [rank.result() for rank in ranks]
    finally:
        multi_threaded_pg._uninstall_threaded_pg()
        multi_threaded_pg.ProcessLocalGroup.reset()
        _c10d._set_thread_isolation_mode(False)
        torch.set_num_threads(num_torch_threads)
