"""Fetching ahead: in the order in which an epoch needs pages, as far as the cache has room for them."""

import os
import sys
import time
from typing import final

import numpy as np

from fastpsl.pipelines.remote.pages import RemotePages

_JUDGED_AFTER_S, _SLOW_SHARE = 30.0, 0.2


def require_room(remote: RemotePages, order: str, needed_bytes: int, remedy: str) -> None:
    """Check that the cache holds all of the data, or at least what an order uses at a time.

    Args:
        remote: The data.
        order: The order's name.
        needed_bytes: What one process uses at a time.
        remedy: What would need less, for the message.

    Raises:
        ValueError: It does not.
    """
    room = remote.room_bytes()
    if room is None or needed_bytes <= room:
        return
    enough = min(needed_bytes * remote.cache.max_bytes / room, 1.06 * remote.total_bytes)
    raise ValueError(
        f"--order {order}: of {remote.address} ({remote.total_bytes / 1e9:,.3g} GB) this process needs "
        f"{needed_bytes / 1e9:,.3g} GB at a time, and its share of the cache is {room / 1e9:,.3g} GB; "
        f"give {remedy}--cache-gb {np.ceil(10 * enough / 1e9) / 10:g}"
    )


def in_order_of_steps(
    remote: RemotePages, global_batch: int, first_step: int, steps_under_way: int
) -> "tuple[np.ndarray, np.ndarray] | None":
    """Return the pages of an evaluation, in the data's order, and the step that gives each back.

    Args:
        remote: The data.
        global_batch: Samples per step.
        first_step: The first step that is read.
        steps_under_way: How many steps are read before the one that is evaluated.

    Returns:
        Numbers of pages and steps, int64 [n] each; None where samples are scattered over the pages.
    """
    if remote.pages.samples is not None:
        return None
    last = (remote.pages.starts[1:] - 1) // global_batch
    pages = np.flatnonzero(last >= first_step)
    return pages, last[pages] + steps_under_way


def by_first_use(remote: RemotePages, samples: np.ndarray) -> np.ndarray:
    """Return all pages: those of the first samples of an epoch in their order, then the others.

    Args:
        remote: The data.
        samples: The first samples that this process reads, int64 [n].
    """
    pages, places = np.unique(remote.pages_with(samples), return_index=True)
    is_used = np.zeros(len(remote.pages.starts) - 1, bool)
    is_used[pages] = True
    return np.concatenate([pages[np.argsort(places)], np.flatnonzero(~is_used)])


@final
class FetchAhead:
    """An epoch's pages, fetched ahead of their use and given back after it.

    Args:
        remote: The data.
        pages: The pages' numbers in the order of their first use, int64 [n].
        give_at: The step that gives each back, int64 [n]; None to hold all until `close`.
    """

    def __init__(self, remote: RemotePages, pages: np.ndarray, give_at: np.ndarray | None) -> None:
        self._remote, self._pages = remote, pages
        self._sizes = remote.pages.extents.num_bytes[pages]
        self._by_step = np.argsort(give_at, kind="stable") if give_at is not None else np.zeros(0, np.int64)
        self._give_at = give_at[self._by_step] if give_at is not None else np.zeros(0, np.int64)
        self._room = remote.room_bytes()
        self._num_asked = self._num_given = self._num_bytes = 0
        self._is_given = np.zeros(len(pages), bool)
        self._began, self._blocked_s = time.monotonic(), 0.0
        self._bytes_before = remote.fetcher.num_bytes
        remote.fetcher.begin()

    def advance(self, step: int) -> None:
        """Give back what was read, and fetch more.

        Args:
            step: The step that is about to be read, not smaller than in the previous call.
        """
        num_given = int(np.searchsorted(self._give_at, step, "right"))
        given = self._by_step[self._num_given : num_given]
        self._num_given = num_given
        self._is_given[given] = True
        asked = given[given < self._num_asked]
        self._num_bytes -= int(self._sizes[asked].sum())
        self._remote.give_back(self._pages[asked].tolist())
        first = self._num_asked
        while self._num_asked < len(self._pages):
            size = 0 if self._is_given[self._num_asked] else int(self._sizes[self._num_asked])
            if self._room is not None and self._num_bytes + size > self._room:
                break
            self._num_bytes += size
            self._num_asked += 1
        wanted = np.arange(first, self._num_asked)
        self._remote.plan(self._pages[wanted[~self._is_given[wanted]]].tolist())

    @property
    def stalled_s(self) -> float:
        """Seconds in which a batch waited for its pages."""
        return self._remote.fetcher.stalled_s

    def note_wait(self, seconds: float) -> None:
        """Count seconds that a step waited for the network, and say once where they are many."""
        self._blocked_s += seconds
        elapsed_s = time.monotonic() - self._began
        if (
            self._remote.is_told_slow
            or elapsed_s < _JUDGED_AFTER_S
            or self._blocked_s < _SLOW_SHARE * elapsed_s
        ):
            return
        self._remote.is_told_slow = True
        if os.environ.get("RANK", "0") == "0":
            share = self._blocked_s / elapsed_s
            rate = (self._remote.fetcher.num_bytes - self._bytes_before) / elapsed_s / 1e6
            remedy = (
                "it ends when all of the data are in the cache"
                if self._room is None
                else "smaller images (`fastpsl data write --short-side 256`), or a cache that holds all of "
                "the data (--cache-gb), help"
            )
            print(
                f"{self._remote.address}: the network is slower than training: steps wait {share:.0%} of the "
                f"time at {rate:,.1f} MB/s; {remedy}",
                file=sys.stderr,
                flush=True,
            )

    def leave(self) -> None:
        """End the waits for pages, because nobody wants the batches any more."""
        self._remote.fetcher.leave()

    def close(self, limit_s: float = 0.0) -> None:
        """Give back all pages. `limit_s` is not used, since nothing is waited for."""
        asked = np.arange(self._num_asked)
        self._remote.give_back(self._pages[asked[~self._is_given[asked]]].tolist())
        self._remote.fetcher.begin()
