"""Pages: the stretches of a dataset file's data that no sample crosses, by default 8 MiB each.

One read takes a whole page. An order that goes page by page reads a file nearly as fast as from front to
back.
"""

from typing import NamedTuple

import numpy as np

from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.shard import REMEDY, chunks
from fastpsl.pipelines.data.dataset import Dataset

_MIN_PAGE_BYTES = 4096  # a header with less is damaged; ffcv's own minimum is 2 MiB


class Extents(NamedTuple):
    """A list of stretches of open files, as numpy arrays of one length."""

    fd: np.ndarray  # int32
    offset: np.ndarray  # int64, bytes
    num_bytes: np.ndarray  # int64

    def part(self, which: np.ndarray) -> "Extents":
        return Extents(*(column[which] for column in self))


class Pages(NamedTuple):
    """The pages that hold samples, numbered through all shards in the order of the files."""

    of_sample: np.ndarray  # int32 [num_samples], the page of each sample
    extents: Extents  # [num_pages]


def pages_of(data: Dataset) -> Pages:
    """Return the pages of a dataset file, computed from its tables at 4 bytes per sample.

    Raises:
        ValueError: The data is no dataset file, or a file was written to since it was opened.
    """
    if data.kind != "beton" or not isinstance(data, Beton):
        kind = "subset" if data.kind == "beton" else data.kind
        raise ValueError(
            f"--order quasi_random: {kind} data lies in no pages; "
            f"pack it with `fastpsl data write`, or choose --order random"
        )
    of_sample = np.empty(data.num_samples, np.int32)
    files: list[Extents] = []
    first_sample = first_page = 0
    for shard in data.shards:
        size = shard.page_size
        if size < _MIN_PAGE_BYTES:
            raise ValueError(
                f"{shard.path}: says that its pages have {size} bytes, which is too few; {REMEDY}"
            )
        shard.check_unchanged()
        shard_pages = of_sample[first_sample : first_sample + shard.num_samples]
        is_used = np.zeros(shard.alloc // size + 1, bool)
        for part in chunks(shard.num_samples):
            shard_pages[part] = shard.table(part)[0]["data_ptr"] // size
            is_used[shard_pages[part]] = True
        # Pages without a sample, such as those of the tables, get no number.
        numbers = np.cumsum(is_used) - 1 + first_page
        for part in chunks(shard.num_samples):
            shard_pages[part] = numbers[shard_pages[part]]
        offset = np.flatnonzero(is_used).astype(np.int64) * size
        num_bytes = np.minimum(offset + size, shard.alloc) - offset
        files.append(Extents(np.full(len(offset), shard.fd, np.int32), offset, num_bytes))
        first_sample += shard.num_samples
        first_page += len(offset)
    return Pages(of_sample, Extents(*(np.concatenate(columns) for columns in zip(*files, strict=True))))
