"""Checksums within a dataset file, by which `verify` finds every change even without the JSON.

They lie between the last sample and the allocation table, where no pointer leads. So ffcv and older versions
of fastpsl read such files as any other. A mark in the arguments of the first field, which ffcv's image field
ignores, shows that they exist.

All are CRC-32, uint32. Each sample has one, over its row of the table (size, pointer, label) and its data.
One is over everything before the table (header, field descriptors), and one over all of these. A CRC-32 finds
accidents; it does not protect against forgery.
"""

import os
import sys
import zlib
from array import array

import numpy as np

from fastpsl.pipelines.beton.shard import FIELD, HEADER, REMEDY, Shard
from fastpsl.pipelines.beton.table import Table

MARK = b"fastpsl crc32 1"  # in the arguments of the first field
MARK_START = HEADER.itemsize + 1 + FIELD["name"].itemsize
_ITEM_BYTES = 4
_NUM_FURTHER = 2


class Checksums:
    """The checksums of samples that are being written, at 4 bytes per sample."""

    def __init__(self) -> None:
        self._each = array("I")
        assert self._each.itemsize == _ITEM_BYTES and sys.byteorder == "little"

    def add(self, row: bytes, data: bytes) -> int:
        """Add a sample and return its checksum."""
        self._each.append(zlib.crc32(data, zlib.crc32(row)))
        return self._each[-1]

    @property
    def num_bytes(self) -> int:
        """The number of bytes that `finish` returns."""
        return num_checksum_bytes(len(self._each))

    def finish(self, head: bytes) -> bytes:
        """Return the bytes before the allocation table; `head` is the header and the field descriptors."""
        self._each.append(zlib.crc32(head))
        self._each.append(zlib.crc32(self._each))
        return self._each.tobytes()


def num_checksum_bytes(num_samples: int) -> int:
    """Return the bytes of all checksums of a file."""
    return _ITEM_BYTES * (num_samples + _NUM_FURTHER)


def has_checksums(shard: Shard) -> bool:
    """Return whether the file is marked to have checksums; those of ffcv and older versions have none."""
    return os.pread(shard.fd, len(MARK), MARK_START) == MARK


def read_checksums(shard: Shard) -> np.ndarray:
    """Return the checksums of the samples, uint32 [num_samples].

    Raises:
        ValueError: The checksums, the header or the field descriptors are damaged.
    """
    num_bytes = num_checksum_bytes(shard.num_samples)
    start = shard.alloc - num_bytes
    data = os.pread(shard.fd, num_bytes, start) if start >= shard.table_end else b""
    checksums = np.frombuffer(data[: len(data) // _ITEM_BYTES * _ITEM_BYTES], "<u4")
    if len(data) < num_bytes or checksums[-1] != zlib.crc32(data[:-_ITEM_BYTES]):
        raise ValueError(f"{shard.name}: its checksums are damaged; copy it again, or {REMEDY}")
    if checksums[-2] != zlib.crc32(os.pread(shard.fd, shard.table_start, 0)):
        raise ValueError(f"{shard.name}: its header is not as it was written; copy it again, or {REMEDY}")
    return checksums[:-_NUM_FURTHER]


def sample_checksums(shard: Shard, samples: np.ndarray) -> np.ndarray:
    """Return the checksums of some samples, uint32 [n], of a file whose checksums are sound."""
    start = shard.alloc - num_checksum_bytes(shard.num_samples)
    return Table(shard.fd, start, np.dtype("<u4"), shard.num_samples)[samples]


def matches_checksum(shard: Shard, index: int, data: bytes, checksum: int) -> bool:
    """Return whether a sample's row and data match its checksum."""
    return zlib.crc32(data, zlib.crc32(shard.row_bytes(index))) == checksum
