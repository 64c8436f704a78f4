"""Pages: the stretches of a dataset file's data that no sample crosses, by default 8 MiB each.

One read takes a whole page. An order that goes page by page reads a file nearly as fast as from front to
back.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastpsl.pipelines.beton.file import MAX_PAGE_BYTES
from fastpsl.pipelines.beton.shard import ALLOCATION, REMEDY, Shard, chunks
from fastpsl.pipelines.interface.dataset import Dataset

_MIN_PAGE_BYTES = 4096  # a header with less is damaged; ffcv's own minimum is 2 MiB
_MAX_PAGES = 1 << 22  # of a file: 32 TiB in pages of 8 MiB, and object stores take 5 TB
_MAX_EMPTY_PAGES = 1 << 16  # those of the table of samples: 512 GiB of it in pages of 8 MiB


class Extents(NamedTuple):
    """A list of stretches of open files, as numpy arrays of one length."""

    fd: np.ndarray  # int32
    offset: np.ndarray  # int64, bytes
    num_bytes: np.ndarray  # int64

    def part(self, which: np.ndarray) -> "Extents":
        return Extents(*(column[which] for column in self))


class Pages(NamedTuple):
    """The pages that hold samples, numbered through all shards in the order of the files."""

    extents: Extents  # where each page lies [num_pages]
    # int64 [num_pages + 1]: the samples of page i are at the places starts[i] to starts[i + 1].
    starts: np.ndarray
    # The sample at each place, int32 or int64 [num_samples], ascending in each page. None where place and
    # sample are the same, as in all files that fastpsl writes.
    samples: np.ndarray | None

    def sizes(self) -> np.ndarray:
        """Return the number of samples of each page, int64 [num_pages]."""
        return np.diff(self.starts)

    def samples_of(self, page: int) -> np.ndarray:
        """Return the samples of a page, ascending, int64."""
        start, stop = self.starts[page], self.starts[page + 1]
        if self.samples is None:
            return np.arange(start, stop)
        return self.samples[start:stop].astype(np.int64)


def pages_of(data: Dataset) -> Pages:
    """Return the pages of a dataset file; see `pages_of_shards`."""
    shards: Sequence[Shard] | None = getattr(data, "shards", None)
    if data.kind != "beton" or shards is None:
        kind = "subset" if data.kind == "beton" else data.kind
        raise ValueError(
            f"--order quasi_random: {kind} data lies in no pages; "
            f"pack it with `fastpsl data write`, or choose --order random"
        )
    return pages_of_shards(shards)


def check_pages(name: str, num_bytes: int, page_bytes: int, alloc: int) -> None:
    """Check what a file's header tells of its pages, before anything of their number is made."""
    if not _MIN_PAGE_BYTES <= page_bytes <= MAX_PAGE_BYTES:
        raise ValueError(f"{name}: says that its pages have {page_bytes:,} bytes, which none has; {REMEDY}")
    num_allocations, num_pages = (num_bytes - alloc) // ALLOCATION.itemsize, -(-alloc // page_bytes)
    if num_pages > min(num_allocations + _MAX_EMPTY_PAGES, _MAX_PAGES):
        raise ValueError(
            f"{name}: says that it has {num_pages:,} pages for {num_allocations:,} parts of samples, which "
            f"no writer makes; {REMEDY}"
        )


def pages_of_shards(shards: Sequence[Shard]) -> Pages:
    """Return the pages of dataset files, computed from their tables.

    It takes no memory per sample, or 4 bytes (8 above 2**31 samples) where another writer has scattered the
    samples over the pages.
    """
    files, sizes, is_in_order = list[Extents](), list[np.ndarray](), True
    for shard in shards:
        size = shard.page_size
        check_pages(shard.name, shard.file_size, size, shard.alloc)
        shard.check_unchanged()
        counts, last = np.zeros(shard.alloc // size + 1, np.int64), 0
        for part in chunks(shard.num_samples):
            pages = _pages_in_file(shard, part)
            is_in_order &= bool(pages[0] >= last and (pages[1:] >= pages[:-1]).all())
            first, last = int(pages.min()), int(pages[-1])
            here = np.bincount(pages - first)
            counts[first : first + len(here)] += here
        used = np.flatnonzero(counts)  # pages without a sample, such as those of the tables, get no number
        offset = used.astype(np.int64) * size
        num_bytes = np.minimum(offset + size, shard.alloc) - offset
        files.append(Extents(np.full(len(offset), shard.fd, np.int32), offset, num_bytes))
        sizes.append(counts[used])
    starts = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
    extents = Extents(*(np.concatenate(columns) for columns in zip(*files, strict=True)))
    return Pages(extents, starts, None if is_in_order else _samples_by_page(shards))


def _pages_in_file(shard: Shard, part: slice) -> np.ndarray:
    """Return the page of each sample, counted from the beginning of the file, int64."""
    return (shard.table(part)[0]["data_ptr"] // shard.page_size).astype(np.int64)


def _samples_by_page(shards: Sequence[Shard]) -> np.ndarray:
    """Return all samples, page after page."""
    num_samples = sum(shard.num_samples for shard in shards)
    samples = np.empty(num_samples, np.int32 if num_samples <= 2**31 else np.int64)
    first = 0
    for shard in shards:
        pages = np.concatenate([_pages_in_file(shard, part) for part in chunks(shard.num_samples)])
        samples[first : first + shard.num_samples] = first + np.argsort(pages, kind="stable")
        first += shard.num_samples
    return samples
