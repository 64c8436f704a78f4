"""Pages: the stretches of a beton's data that no sample crosses, 8 MiB each where nothing else was asked for.

A page is what is worth reading in one go: an order that goes page by page reads a file nearly as fast as from
front to back.
"""

from typing import NamedTuple

import numpy as np

from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.shard import REMEDY, chunks
from fastpsl.pipelines.data.dataset import Dataset

_MIN_PAGE_BYTES = 4096  # below it a header is nonsense; ffcv's own minimum is 2 MiB


class Extents(NamedTuple):
    """Stretches of open files; numpy arrays of one length."""

    fd: np.ndarray  # int32
    offset: np.ndarray  # int64, bytes
    num_bytes: np.ndarray  # int64

    def part(self, which: np.ndarray) -> "Extents":
        return Extents(*(column[which] for column in self))


class Pages(NamedTuple):
    """The pages that hold samples, numbered through all shards in the order of the files, and who lies where."""

    of_sample: np.ndarray  # int32 [num_samples], the sample's page
    extents: Extents  # [num_pages]


def pages_of(data: Dataset) -> Pages:
    """The pages of a beton: 4 bytes a sample, made from the tables, kept by nobody. ValueError for data of another
    kind, and where a file has been written to since opening."""
    if data.kind != "beton":
        raise ValueError(
            f"--order quasi_random: {data.kind} data lies in no pages; write a beton of it, or choose --order random"
        )
    assert isinstance(data, Beton)
    of_sample = np.empty(data.num_samples, np.int32)
    files: list[Extents] = []
    first_sample = first_page = 0
    for shard in data.shards:
        size = shard.page_size
        if size < _MIN_PAGE_BYTES:
            raise ValueError(f"{shard.path}: says that its pages have {size} bytes; {REMEDY}")
        shard.check_unchanged()
        mine = of_sample[first_sample : first_sample + shard.num_samples]
        used = np.zeros(shard.alloc // size + 1, bool)
        for part in chunks(shard.num_samples):
            mine[part] = shard.table(part)[0]["data_ptr"] // size
            used[mine[part]] = True
        # Pages without a sample, those of the tables first of all, get no number.
        numbers = np.cumsum(used) - 1 + first_page
        for part in chunks(shard.num_samples):
            mine[part] = numbers[mine[part]]
        offset = np.flatnonzero(used).astype(np.int64) * size
        num_bytes = np.minimum(offset + size, shard.alloc) - offset
        files.append(Extents(np.full(len(offset), shard.fd, np.int32), offset, num_bytes))
        first_sample += shard.num_samples
        first_page += len(offset)
    return Pages(of_sample, Extents(*(np.concatenate(columns) for columns in zip(*files, strict=True))))
