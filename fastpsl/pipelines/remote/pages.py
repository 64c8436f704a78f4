"""The pages of remote dataset files: which of them are here, and the rest of them on demand."""

import os
import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar, final

import numpy as np

from fastpsl.console.progress import operation
from fastpsl.files.remote.address import remote_objects
from fastpsl.files.remote.cache import Cache
from fastpsl.files.remote.fetcher import NUM_CONNECTIONS, Fetcher, Page
from fastpsl.files.workers import map_in_order
from fastpsl.pipelines.beton.checksums import matches_checksum, sample_checksums
from fastpsl.pipelines.beton.pages import Pages, pages_of_shards
from fastpsl.pipelines.beton.shard import Shard
from fastpsl.pipelines.remote.beton import CachedShard, RemoteBeton

_SHARE_FOR_DATA = 0.95  # of the cache; all of the data fits if it takes no more


def remote_pages(data: object) -> "RemotePages | None":
    """Return the pages of data that live elsewhere; None for all other data, and for subsets."""
    remote: RemotePages | None = getattr(data, "remote", None)
    return remote


@final
class RemotePages:
    """The remote dataset files behind an address. `open` follows when their tables were read.

    Args:
        address: The address of a dataset file, or a glob of such addresses.
        cache: The cache.

    Attributes:
        address: As given.
        cache: As given.
        names: The address of each file, in the order of the files.
        paths: The files in the cache, which have all of their tables, and some of their pages.
        total_bytes: The size of all files.
        table_bytes: The bytes on the disk of their tables, which are always here.
        pages: The pages.
        fetcher: What fetches them.
        is_told_slow: Whether a line has said that the network is slower than training.

    Raises:
        ValueError: A file cannot be reached, or is no dataset file. The message is one line.
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
                files = map_in_order(
                    lambda remote: RemoteBeton(remote, cache),
                    objects,
                    NUM_CONNECTIONS,
                    "fastpsl-open",
                    group=1,
                )
                for _, file in progress.track(files):
                    self._files.append(file)
                self.paths = [file.file.path for file in self._files]
                self._first_parts = np.cumsum([0] + [len(file.file.parts) for file in self._files])
                self.fetcher = Fetcher(list(self._all_parts()))
                self._fetch_tables()
        except BaseException:
            self.close()
            raise
        self.table_bytes = sum(file.table_bytes() for file in self._files)
        self._opened.add(self)

    def _all_parts(self) -> Iterator[Page]:
        for number, file in enumerate(self._files):
            for part in range(len(file.file.parts)):
                yield Page(file.file, part, partial(self._is_whole, number, part))

    def _fetch_tables(self) -> None:
        firsts = self._first_parts.tolist()
        tables = [
            first + i
            for first, file in zip(firsts, self._files, strict=False)
            for i in range(file.num_tables)
        ]
        self.fetcher.plan(tables)
        self.fetcher.wait(tables)

    def open_shard(self, number: int, num_classes: int | None) -> Shard:
        """Open a file by its tables here, which are fetched again if they are damaged.

        Args:
            number: The file, by its place in `names`.
            num_classes: The number of its classes, or None where they have no names.

        Raises:
            ValueError: It is no sound dataset file.
        """
        for is_last in (False, True):
            try:
                return CachedShard(self.paths[number], num_classes, self.names[number])
            except ValueError:
                if is_last or not self._files[number].mend_tables():
                    raise
        raise AssertionError

    def open(self, shards: Sequence[Shard]) -> None:
        """Learn from the opened tables where the samples lie.

        Args:
            shards: The opened files, in their order.
        """
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
        self._page_of_sample = None if self.pages.samples is None else self._inverse()

    def _inverse(self) -> np.ndarray:
        """Return the page of each sample, int32, for files in which they are scattered."""
        assert self.pages.samples is not None
        page_of_sample = np.empty(len(self.pages.samples), np.int32)
        page_of_sample[self.pages.samples] = np.repeat(
            np.arange(len(self.pages.starts) - 1), self.pages.sizes()
        )
        return page_of_sample

    def pages_with(self, samples: np.ndarray) -> np.ndarray:
        """Return the page of each of some samples.

        Args:
            samples: Their numbers, int64 [n].
        """
        if self._page_of_sample is not None:
            return self._page_of_sample[samples]
        return np.searchsorted(self.pages.starts, samples, "right") - 1

    def wait(self, samples: np.ndarray) -> None:
        """Wait until the bytes of samples are here. Those of many samples before may be given up then.

        Args:
            samples: Their numbers, int64 [n].

        Raises:
            ValueError: They cannot be fetched. The message is one line.
        """
        self.fetcher.wait(self._part_of_page[np.unique(self.pages_with(samples))].tolist())

    def share_here(self, samples: np.ndarray) -> float:
        """Return the share of some samples whose bytes are here.

        Args:
            samples: Their numbers, int64 [n], n > 0.
        """
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
        num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        for_pages = int(_SHARE_FOR_DATA * self.cache.max_bytes) - sum(
            data.table_bytes for data in self._opened
        )
        return max(for_pages, 0) // (num_processes * len(self._opened))

    def _is_whole(self, number: int, part: int, data: bytes) -> bool:
        """Return whether a part's bytes match the checksums, or where there are none, the file's version."""
        file = self._files[number]
        if part < file.num_tables:
            return True  # `_fetch_tables` checks them together
        if not file.layout.has_checksums:
            return file.remote.is_unchanged()
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
