"""What a loader does for data that live elsewhere: nothing for local data."""

import time

import numpy as np

from fastpsl.pipelines.beton.remote import (
    FetchAhead,
    by_first_use,
    in_order_of_steps,
    remote_pages,
    require_room,
)
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.order import PADDING, Order, index_of, step_indices
from fastpsl.pipelines.loader.pending_batch import PendingBatch
from fastpsl.pipelines.loader.quasi_random import Readahead

# Of the limit for a batch, so that the error is what the network lacks, and not that limit.
_SHARE_OF_LIMIT = 0.8


def prepare_fetching(data: Dataset, timeout_s: float, prefetch_batches: int, *, is_random: bool) -> None:
    """Set how long pages are tried for and held, and check that the cache has room for them."""
    remote = remote_pages(data.data if isinstance(data, Subset) else data)
    if remote is not None:
        remote.fetcher.limit_s = _SHARE_OF_LIMIT * timeout_s
        remote.fetcher.num_waits = max(remote.fetcher.num_waits, 2 * prefetch_batches)
        if is_random:
            require_room(remote, "random", remote.total_bytes, "--order quasi_random, or ")


def fetch_ahead(
    data: Dataset, order: Order, steps: range, share: tuple[int, int, int], prefetch_batches: int, train: bool
) -> FetchAhead | None:
    """Return what fetches the pages of an epoch ahead of their use; None where all is local."""
    remote = remote_pages(data)
    if remote is None:
        return None
    batch_size, rank, world = share
    if not train and remote.room_bytes() is not None:
        plan = in_order_of_steps(remote, batch_size * world, steps.start, prefetch_batches)
        return None if plan is None else FetchAhead(remote, *plan)
    # After that many samples, few pages are left that none of them lies in.
    first = steps[: 8 * (len(remote.pages.starts) - 1) // batch_size + 1]
    samples = [index_of(step_indices(order, step, batch_size, rank, world)) for step in first]
    together = np.concatenate([np.zeros(0, np.int64), *samples])
    return FetchAhead(remote, by_first_use(remote, together[together != PADDING]), None)


def result_of(pending: PendingBatch, timeout_s: float, readahead: Readahead | FetchAhead | None) -> Batch:
    """Return a batch, and tell the read-ahead how long the network was waited for."""
    if not isinstance(readahead, FetchAhead):
        return pending.result(timeout_s)
    began, stalled_s = time.monotonic(), readahead.stalled_s
    batch = pending.result(timeout_s)
    readahead.note_wait(min(time.monotonic() - began, readahead.stalled_s - stalled_s))
    return batch
