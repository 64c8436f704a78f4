"""Read-ahead of an epoch: advice to the system for local files, and fetching for remote ones."""

import os
import threading
import warnings
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import final

import numpy as np

from fastpsl.files.workers import Workers
from fastpsl.pipelines.beton.pages import Extents
from fastpsl.pipelines.beton.remote import (
    FetchAhead,
    by_first_use,
    in_order_of_steps,
    remote_pages,
    require_room,
)
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.order import PADDING, Order, index_of, step_indices

_MIN_PIECE_KIB = 128  # Linux's usual read-ahead, where neither number below is known
# Fetching gives up before the batch does, so that the error names the network. What is left, 24 s by default,
# is for a last answer and for decoding (not measured).
_SHARE_OF_LIMIT = 0.8


@final
class Readahead:
    """A schedule of read-ahead: advise WILLNEED for a part before it is read, DONTNEED after.

    The steps of both are int64 [N] for the N parts. Without any parts there is no thread.
    """

    def __init__(self, extents: Extents, ask_at: np.ndarray, give_at: np.ndarray) -> None:
        assert len(extents.fd) == len(ask_at) == len(give_at) and (ask_at < give_at).all()
        self._extents = extents
        self._to_ask, self._to_give = (np.argsort(steps, kind="stable") for steps in (ask_at, give_at))
        self._ask_steps, self._give_steps = ask_at[self._to_ask], give_at[self._to_give]
        self._num_asked = self._num_given = 0
        self._piece_bytes = {fd: piece_bytes(fd) for fd in np.unique(extents.fd).tolist()}
        self._held: set[int] = set()  # parts asked for and not given back; only the thread uses it
        self._closing = threading.Event()
        # A thread of its own makes the calls, because WILLNEED blocks while the storage's queue is full.
        self._workers = Workers(1, "fastpsl-readahead") if len(ask_at) else None

    def advance(self, step: int) -> None:
        """Submit the calls that are due before a step is read, which takes a few microseconds."""
        if self._workers is None:
            return
        num_given = int(np.searchsorted(self._give_steps, step, "right"))
        num_asked = int(np.searchsorted(self._ask_steps, step, "right"))
        # First, so that the page cache has room for what is asked for next.
        if num_given > self._num_given:
            self._workers.submit(self._give, self._to_give[self._num_given : num_given].tolist())
            self._num_given = num_given
        if num_asked > self._num_asked:
            self._workers.submit(self._ask, self._to_ask[self._num_asked : num_asked].tolist())
            self._num_asked = num_asked

    def waiting(self) -> AbstractContextManager[object]:
        """Return a context that counts nothing: a part that is late is read by the decoder."""
        return nullcontext()

    def leave(self) -> None:
        """Do nothing, since nobody waits for a part."""

    def close(self, limit_s: float = 5.0) -> None:
        """Give back all parts that are held and end the thread, waiting at most `limit_s` seconds."""
        if self._workers is not None and not self._workers.closed:
            self._closing.set()  # what is queued ends at once, and the next line is queued behind it
            self._workers.submit(lambda: self._give(sorted(self._held)))
            self._workers.close(limit_s)

    def _ask(self, parts: list[int]) -> None:
        for i in parts:
            if self._closing.is_set():
                return
            offset = int(self._extents.offset[i])
            end = offset + int(self._extents.num_bytes[i])
            piece = self._piece_bytes[int(self._extents.fd[i])]
            self._held.add(i)  # before the calls, because `close` also gives back what is half asked for
            for start in range(offset, end, piece):  # the system reads no more for one call
                if self._closing.is_set():
                    return
                self._advise(i, start, min(piece, end - start), os.POSIX_FADV_WILLNEED)

    def _give(self, parts: list[int]) -> None:
        for i in parts:
            self._held.discard(i)
            offset, num_bytes = int(self._extents.offset[i]), int(self._extents.num_bytes[i])
            self._advise(i, offset, num_bytes, os.POSIX_FADV_DONTNEED)

    def _advise(self, i: int, offset: int, num_bytes: int, advice: int) -> None:
        try:
            os.posix_fadvise(int(self._extents.fd[i]), offset, num_bytes, advice)
        except OSError as error:
            if not self._closing.is_set():
                self._closing.set()  # no more WILLNEED after the first failure
                warnings.warn(
                    f"no read-ahead: posix_fadvise failed ({error.strerror}); "
                    "samples are read as they are needed",
                    stacklevel=2,
                )


def piece_bytes(fd: int) -> int:
    """Return how many bytes of an open file one WILLNEED reads at most, whatever length it is given.

    That is the larger of the disk's read-ahead and its largest request.
    """
    # Linux, mm/readahead.c, force_page_cache_ra.
    device = os.fstat(fd).st_dev
    block = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    kib = [_MIN_PIECE_KIB]
    for queue in ("queue", "../queue"):  # a disk has the first, a partition's disk the second
        for name in ("read_ahead_kb", "max_sectors_kb"):
            with suppress(OSError, ValueError):
                kib.append(int(Path(f"{block}/{queue}/{name}").read_text()))
    return max(kib) << 10


def prepare_fetching(data: Dataset, timeout_s: float, prefetch_batches: int, *, is_random: bool) -> None:
    """Set how long pages are tried for and held, and check that the cache has room for them."""
    remote = remote_pages(data.data if isinstance(data, Subset) else data)
    if remote is not None:
        remote.fetcher.limit_s = _SHARE_OF_LIMIT * timeout_s
        # Twice as many as are in flight, because a batch reads its pages after its wait for them has ended.
        remote.fetcher.num_waits = max(remote.fetcher.num_waits, 2 * prefetch_batches)
        if is_random:
            require_room(remote, "random", remote.total_bytes, "--order quasi_random, or ")


def fetch_ahead(
    data: Dataset, order: Order, steps: range, share: tuple[int, int, int], prefetch_batches: int, train: bool
) -> FetchAhead | None:
    """Return a fetcher of an epoch's pages ahead of their use; None where all data are local."""
    remote = remote_pages(data)
    if remote is None:
        return None
    batch_size, rank, world = share
    if not train and remote.room_bytes() is not None:
        plan = in_order_of_steps(remote, batch_size * world, steps.start, prefetch_batches)
        return None if plan is None else FetchAhead(remote, *plan)
    # After that many samples, 8 for each page, few pages are left that none of them lies in: exp(-8) of them.
    first = steps[: 8 * (len(remote.pages.starts) - 1) // batch_size + 1]
    samples = [index_of(step_indices(order, step, batch_size, rank, world)) for step in first]
    together = np.concatenate([np.zeros(0, np.int64), *samples])
    return FetchAhead(remote, by_first_use(remote, together[together != PADDING]), None)
