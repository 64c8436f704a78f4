"""Dataset files that live elsewhere: their layout, pages on demand, and pages fetched ahead."""

import os
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, NamedTuple, final

import numpy as np
from typing_extensions import override

from fastpsl.console.progress import operation
from fastpsl.console.terminal import own_rank
from fastpsl.files.remote.address import RemoteObject, read_whole, remote_objects
from fastpsl.files.remote.cache import Cache, cache_errors
from fastpsl.files.remote.fetcher import NUM_CONNECTIONS, Fetcher, Page
from fastpsl.files.system_errors import raise_of_the_system
from fastpsl.files.workers import map_in_order, num_local_ranks
from fastpsl.pipelines.beton.pages import Pages, check_pages, pages_of_shards
from fastpsl.pipelines.beton.shard import FIELD, HEADER, ROW_OF_TYPE, VERSION, Shard, holds_tables, row_dtype
from fastpsl.pipelines.beton.sidecar import (
    MARK,
    MARK_START,
    has_checksums,
    matches_checksum,
    num_checksum_bytes,
    read_checksums,
    sample_checksums,
    sidecar_path,
)

_HEAD_BYTES = 1 << 14  # a header with 15 fields
_DISK_BLOCK = 4096  # of most file systems; for an estimate
_PIECE_BYTES = 16 << 20  # of the tables per request; what a thread holds, and what a lost answer costs
_SIDECAR_BYTES, _MAX_SIDECAR_BYTES = 16 << 20, 1 << 30  # of a file without samples, and of any
_MAX_READINGS = 4  # of a stretch whose bytes are in doubt, until two agree: two of them may be damaged


class Layout(NamedTuple):
    """The places of the parts of a dataset file, in bytes."""

    table_end: int
    tail: int  # the checksums, if there are some, and the allocation table
    page_bytes: int
    has_checksums: bool

    def parts(self, num_bytes: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the starts and stops of the parts of a file's tables, and of its pages, int64 [n, 2]."""
        tables = [
            (start, min(start + _PIECE_BYTES, stop))
            for begin, stop in ((0, self.table_end), (self.tail, num_bytes))
            for start in range(begin, stop, _PIECE_BYTES)
        ]
        start = np.arange(0, self.tail, self.page_bytes)
        stop = np.minimum(start + self.page_bytes, self.tail)
        pages = np.stack([np.clip(start, self.table_end, stop), stop], 1)
        return np.array(tables, np.int64).reshape(-1, 2), pages

    def num_table_bytes(self, num_bytes: int) -> int:
        """Return the bytes of the tables."""
        return self.table_end + num_bytes - self.tail


def _layout(remote: RemoteObject, head: bytes) -> Layout:
    """Return the layout that a file's first bytes tell."""
    header = np.frombuffer(head, HEADER, 1)[0] if len(head) >= HEADER.itemsize else np.zeros((), HEADER)
    num_fields, num_samples = int(header["num_fields"]), int(header["num_samples"])
    table_start, page_bytes = HEADER.itemsize + num_fields * FIELD.itemsize, int(header["page_size"])
    is_known = header["version"] == VERSION and 1 <= num_fields <= 256
    if is_known and len(head) < table_start <= remote.num_bytes:  # it has many fields
        return _layout(remote, _read(remote, 0, table_start))
    is_known &= len(head) >= table_start
    types = np.frombuffer(head, FIELD, num_fields, HEADER.itemsize)["type_id"].tolist() if is_known else []
    if not types or not set(types) <= ROW_OF_TYPE.keys():
        raise ValueError(
            f"{remote.address}: is no dataset file of FFCV's format 2, as its first bytes show; give a "
            ".beton file, which `fastpsl data write` makes"
        )
    table_end = table_start + num_samples * row_dtype(types).itemsize
    alloc = int(header["alloc_table_ptr"])
    has_checksums = head[MARK_START : MARK_START + len(MARK)] == MARK
    tail = alloc - (num_checksum_bytes(num_samples) if has_checksums else 0)
    if not (table_end <= tail and holds_tables(remote.num_bytes, num_samples, table_end, alloc)):
        raise ValueError(
            f"{remote.address}: is not whole, or damaged ({remote.num_bytes:,} bytes do not hold the tables "
            f"of {num_samples:,} samples); upload it again"
        )
    check_pages(remote.address, remote.num_bytes, page_bytes, alloc)
    return Layout(table_end, tail, page_bytes, has_checksums)


class CachedShard(Shard):
    """A dataset file in the cache. It changes while its pages come, and nobody else writes to it."""

    @override
    def _open_tables(self) -> None:
        """Check the checksums, too, because what came over a network may be damaged."""
        super()._open_tables()
        if has_checksums(self):
            read_checksums(self)

    @override
    def check_unchanged(self) -> None:
        """Do nothing."""


def _read(remote: RemoteObject, start: int, stop: int) -> bytes:
    """Return a stretch of a file, which may end before `stop`."""
    return remote.read_persistently(start, min(stop, remote.num_bytes))


class RemoteBeton:
    """A remote dataset file with a place in the cache."""

    def __init__(self, remote: RemoteObject, cache: Cache) -> None:
        self.remote, self._cache = remote, cache
        self.layout = _layout(remote, _read(remote, 0, _HEAD_BYTES))
        num_table_bytes = self.layout.num_table_bytes(remote.num_bytes)
        if num_table_bytes > cache.max_bytes:
            raise ValueError(
                f"{remote.address}: its tables take {num_table_bytes / 1e9:,.3g} GB, and the cache at most "
                f"{cache.max_bytes / 1e9:,.3g} GB; give a larger --cache-gb, or another file"
            )
        tables, pages = self.layout.parts(remote.num_bytes)
        self.file, self.num_tables = cache.open(remote, np.concatenate([tables, pages])), len(tables)
        most = min(_SIDECAR_BYTES + num_table_bytes, _MAX_SIDECAR_BYTES)
        try:
            cache.keep(sidecar_path(self.file.path), read_whole(f"{remote.address}.json", most))
        except BaseException:
            self.file.close()
            raise

    def table_bytes(self) -> int:
        """Return about how many bytes the tables take on the disk, with the list of parts."""
        parts = self.file.parts
        # 24 bytes are a row of the list of parts. The two stretches of tables and the list fill whole blocks.
        return int(np.diff(parts[: self.num_tables]).sum()) + 24 * len(parts) + 4 * _DISK_BLOCK

    def mend_tables(self) -> bool:
        """Read the tables again, and correct those here where they came damaged; return whether they had.

        Only the header and the samples' checksums have checksums of their own.
        """
        were_damaged = False
        for start, stop in self.file.parts[: self.num_tables].tolist():
            again = self._read_alike(start, stop)
            with cache_errors(self._cache.folder):
                if again is not None and os.pread(self.file.fd, stop - start, start) != again:
                    os.pwrite(self.file.fd, again, start)
                    were_damaged = True
        return were_damaged

    def _read_alike(self, start: int, stop: int) -> bytes | None:
        """Return what two readings of a stretch agree on, or None where all of them differ."""
        seen = set[bytes]()
        for _ in range(_MAX_READINGS):
            data = _read(self.remote, start, stop)
            if data in seen:
                return data
            seen.add(data)
        return None


# Of the cache; all of the data fits if it takes no more. The rest is for lists of parts, JSONs and blocks
# that are partly filled (not measured).
_SHARE_FOR_DATA = 0.95


def remote_pages(data: object) -> "RemotePages | None":
    """Return the pages of data that live elsewhere; None for all other data, and for subsets."""
    remote: RemotePages | None = getattr(data, "remote", None)
    return remote


@final
class RemotePages:
    """The remote files behind an address or a glob of them. `open` follows when their tables were read.

    `names` are the files' addresses. `paths` are their places in the cache, with all of their tables, which
    take `table_bytes` on the disk, and some of their pages.
    """

    pages: Pages
    _opened: ClassVar["weakref.WeakSet[RemotePages]"] = weakref.WeakSet()

    def __init__(self, address: str, cache: Cache) -> None:
        self.address, self.cache, self.is_told_slow = address, cache, False
        with operation(f"{address}: looking for it"):
            objects = remote_objects(address)
        self.names = [remote.address for remote in objects]
        self.total_bytes = sum(remote.num_bytes for remote in objects)
        self._files = list[RemoteBeton]()
        try:
            with operation(f"{address}: fetching its tables", "files", len(objects)) as progress:
                open_one = partial(RemoteBeton, cache=cache)
                files = map_in_order(open_one, objects, NUM_CONNECTIONS, "fastpsl-open", group=1)
                for _, file in progress.track(files):
                    self._files.append(file)
                self.paths = [file.file.path for file in self._files]
                self._first_parts = np.cumsum([0] + [len(file.file.parts) for file in self._files])
                self.fetcher = Fetcher(
                    [
                        Page(file.file, part, partial(self._is_whole, number, part))
                        for number, file in enumerate(self._files)
                        for part in range(len(file.file.parts))
                    ]
                )
                firsts = zip(self._first_parts.tolist(), self._files, strict=False)
                tables = [first + i for first, file in firsts for i in range(file.num_tables)]
                self.fetcher.plan(tables)
                self.fetcher.wait(tables)
        except BaseException:
            self.close()
            raise
        self.table_bytes = sum(file.table_bytes() for file in self._files)
        self._opened.add(self)

    @property
    def versions(self) -> list[str]:
        """The version of each file, as its server tells it, or a digest of its ends."""
        return [file.remote.version for file in self._files]

    def open_shard(self, number: int, num_classes: int | None) -> Shard:
        """Open a file by its tables here, which are fetched again if they are damaged."""
        arguments = self.paths[number], num_classes, self.names[number]
        try:
            return CachedShard(*arguments)
        except ValueError as error:
            raise_of_the_system(self.paths[number], error)
            if not self._files[number].mend_tables():
                raise  # the file itself is damaged
        return CachedShard(*arguments)

    def open(self, shards: Sequence[Shard]) -> None:
        """Learn from the opened tables where the samples lie."""
        self._shards, self.pages = shards, pages_of_shards(shards)
        starts = np.cumsum([0] + [shard.num_samples for shard in shards])
        self._first_samples = starts[:-1]
        fds = np.array([shard.fd for shard in shards])
        order = np.argsort(fds)
        number = order[np.searchsorted(fds[order], self.pages.extents.fd)]
        page_bytes = np.array([file.layout.page_bytes for file in self._files])
        num_tables = np.array([file.num_tables for file in self._files])
        offsets = self.pages.extents.offset
        self._part_of_page = self._first_parts[number] + num_tables[number] + offsets // page_bytes[number]
        self._page_of_sample: np.ndarray | None = None
        if (samples := self.pages.samples) is not None:  # scattered over the pages
            self._page_of_sample = np.empty(len(samples), np.int32)
            pages = np.arange(len(self.pages.starts) - 1)
            self._page_of_sample[samples] = np.repeat(pages, self.pages.sizes())

    def pages_with(self, samples: np.ndarray) -> np.ndarray:
        """Return the page of each of some samples, int64 [n]."""
        if self._page_of_sample is not None:
            return self._page_of_sample[samples]
        return np.searchsorted(self.pages.starts, samples, "right") - 1

    def wait(self, samples: np.ndarray) -> None:
        """Wait until samples' bytes are here, int64 [n]. Those of many before may be given up then."""
        self.fetcher.wait(self._part_of_page[np.unique(self.pages_with(samples))].tolist())

    def share_here(self, samples: np.ndarray) -> float:
        """Return the share of some samples, int64 [n], n > 0, whose bytes are here."""
        parts, counts = np.unique(self._part_of_page[self.pages_with(samples)], return_counts=True)
        here = [self.fetcher.is_here(part) for part in parts.tolist()]
        return float(counts[here].sum() / counts.sum())

    def plan(self, pages: Sequence[int]) -> None:
        """Fetch pages, in this order, and hold them until they are given back."""
        self.fetcher.plan(self._part_of_page[list(pages)].tolist())

    def give_back(self, pages: Sequence[int]) -> None:
        """End the hold of pages. They stay in the cache until their room is needed."""
        self.fetcher.give_back(self._part_of_page[list(pages)].tolist())

    def room_bytes(self) -> int | None:
        """Return the bytes that this process may hold, or None where the cache has room for all of the data.

        The data sets that a process has open share the cache, and so do the processes of a machine.
        """
        total_bytes = sum(data.total_bytes for data in self._opened)
        if total_bytes <= _SHARE_FOR_DATA * self.cache.max_bytes:
            return None
        num_processes = num_local_ranks()
        table_bytes = sum(data.table_bytes for data in self._opened)
        for_pages = int(_SHARE_FOR_DATA * self.cache.max_bytes) - table_bytes
        return max(for_pages, 0) // (num_processes * len(self._opened))

    def _is_whole(self, number: int, part: int, data: bytes) -> bool:
        """Return whether a part's bytes match the checksums, or where there are none, the file's version."""
        file = self._files[number]
        if part < file.num_tables or not file.layout.has_checksums:
            return file.remote.is_unchanged()  # `open_shard` checks the tables together, too
        shard, start = self._shards[number], int(file.file.parts[part, 0])
        page = int(np.searchsorted(self._part_of_page, self._first_parts[number] + part))
        samples = self.pages.samples_of(page) - self._first_samples[number]
        places = shard.table(samples)[0]["data_ptr"].astype(np.int64) - start
        columns = (samples, places, shard.sizes(samples), sample_checksums(shard, samples))
        is_whole = all(
            matches_checksum(shard, sample, data[place : place + size], checksum)
            for sample, place, size, checksum in zip(*(column.tolist() for column in columns), strict=True)
        )
        if not is_whole:
            file.mend_tables()  # for the next try
        return is_whole

    def close(self) -> None:
        """End the threads, and close the files in the cache."""
        self._opened.discard(self)
        if hasattr(self, "fetcher"):
            self.fetcher.close()
        for file in self._files:
            file.file.close()


# The first pages of an epoch are waited for in any case, and a fifth of the time is worth a remedy. Both by
# judgement.
_JUDGED_AFTER_S, _SLOW_SHARE = 30.0, 0.2


def require_room(remote: RemotePages, order: str, needed_bytes: int, remedy: str) -> None:
    """Check that the cache holds all of the data, or at least what an order uses at a time."""
    room = remote.room_bytes()
    if room is None or needed_bytes <= room:
        return
    # A cache of 1.06 times the data has room for all of them: 1 / _SHARE_FOR_DATA, rounded up.
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

    Both are int64 [n]. None is returned where samples are scattered over the pages. `steps_under_way` steps
    are read before the one that is evaluated.
    """
    if remote.pages.samples is not None:
        return None
    last = (remote.pages.starts[1:] - 1) // global_batch
    pages = np.flatnonzero(last >= first_step)
    return pages, last[pages] + steps_under_way


def by_first_use(remote: RemotePages, samples: np.ndarray) -> np.ndarray:
    """Return all pages: those of an epoch's first `samples`, int64 [n], in their order, then the others."""
    pages, places = np.unique(remote.pages_with(samples), return_index=True)
    is_used = np.zeros(len(remote.pages.starts) - 1, bool)
    is_used[pages] = True
    return np.concatenate([pages[np.argsort(places)], np.flatnonzero(~is_used)])


@final
class FetchAhead:
    """An epoch's pages, int64 [n], fetched ahead of their first use and given back after it.

    `give_at` has the step that gives each back; None holds all until `close`.
    """

    def __init__(self, remote: RemotePages, pages: np.ndarray, give_at: np.ndarray | None) -> None:
        self._remote, self._pages = remote, pages
        self._sizes = remote.pages.extents.num_bytes[pages]
        give_at = np.zeros(0, np.int64) if give_at is None else give_at
        self._by_step = np.argsort(give_at, kind="stable")
        self._give_at = give_at[self._by_step]
        self._room = remote.room_bytes()
        self._num_asked = self._num_given = self._num_bytes = 0
        self._is_given = np.zeros(len(pages), bool)
        self._began, self._blocked_s = time.monotonic(), 0.0
        self._bytes_before = remote.fetcher.num_bytes
        remote.fetcher.begin()

    def advance(self, step: int) -> None:
        """Give back what was read, and fetch more."""
        num_given = int(np.searchsorted(self._give_at, step, "right"))
        # Before more is asked for, because it makes room.
        given = self._by_step[self._num_given : num_given]
        self._num_given = num_given
        self._is_given[given] = True
        asked = given[given < self._num_asked]
        self._num_bytes -= int(self._sizes[asked].sum())
        self._remote.give_back(self._pages[asked].tolist())
        first = self._num_asked
        while self._num_asked < len(self._pages):
            # A page that is given back before it was asked for is passed over.
            size = 0 if self._is_given[self._num_asked] else int(self._sizes[self._num_asked])
            if self._room is not None and self._num_bytes + size > self._room:
                break
            self._num_bytes += size
            self._num_asked += 1
        wanted = np.arange(first, self._num_asked)
        self._remote.plan(self._pages[wanted[~self._is_given[wanted]]].tolist())

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the part of a step's wait that is for the network, and say once where it is much."""
        began, stalled_s = time.monotonic(), self._remote.fetcher.stalled_s
        yield
        # The network is at fault only while a page is waited for, and several threads may wait at once.
        self._blocked_s += min(time.monotonic() - began, self._remote.fetcher.stalled_s - stalled_s)
        elapsed_s = time.monotonic() - self._began
        is_slow = elapsed_s >= _JUDGED_AFTER_S and self._blocked_s >= _SLOW_SHARE * elapsed_s
        if self._remote.is_told_slow or not is_slow:
            return
        self._remote.is_told_slow = True
        if own_rank() == 0:
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
        self._remote.fetcher.begin()  # the data stay open for other readers, who may wait again
