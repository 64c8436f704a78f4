"""Checksums within a beton, so that `verify` finds every change of what is read also where the JSON did not travel along.

They lie between the last sample and the allocation table, where no pointer leads: ffcv and older versions of fastpsl read such
betons as any other. All are CRC-32, uint32: of each sample, its row of the table (size, place, label) and then its data; of all
before the table (header, field descriptors); and of these two together. The arguments of the first field, which ffcv's image
field does not read, say that they are there. A CRC-32 finds accidents; whoever changes a beton on purpose can make it fit.
"""

import os
import sys
import zlib
from array import array

import numpy as np

from fastpsl.pipelines.beton.shard import FIELD, HEADER, REMEDY, Shard

MARK = b"fastpsl crc32 1"  # in the first field's arguments
_MARK_START = HEADER.itemsize + 1 + FIELD["name"].itemsize
_ITEM_BYTES = 4
_NUM_FURTHER = 2


class Checksums:
    """Of samples that are being written: 4 bytes each."""

    def __init__(self) -> None:
        self._each = array("I")
        assert self._each.itemsize == _ITEM_BYTES and sys.byteorder == "little"

    def add(self, row: bytes, data: bytes) -> None:
        self._each.append(zlib.crc32(data, zlib.crc32(row)))

    @property
    def num_bytes(self) -> int:
        """Length of what `finish` gives."""
        return _ITEM_BYTES * (len(self._each) + _NUM_FURTHER)

    def finish(self, head: bytes) -> bytes:
        """What goes before the allocation table; head: header and field descriptors."""
        self._each.append(zlib.crc32(head))
        self._each.append(zlib.crc32(self._each))
        return self._each.tobytes()


def has_checksums(shard: Shard) -> bool:
    """Whether the beton says that it has checksums: those of ffcv and of older versions of fastpsl have none."""
    return os.pread(shard.fd, len(MARK), _MARK_START) == MARK


def read_checksums(shard: Shard) -> np.ndarray:
    """Of each sample, uint32 [num_samples]. ValueError where they, the header or the field descriptors are damaged."""
    num_bytes = _ITEM_BYTES * (shard.num_samples + _NUM_FURTHER)
    start = shard.alloc - num_bytes
    data = os.pread(shard.fd, num_bytes, start) if start >= shard.table_end else b""
    found = np.frombuffer(data[: len(data) // _ITEM_BYTES * _ITEM_BYTES], "<u4")
    if len(data) < num_bytes or found[-1] != zlib.crc32(data[:-_ITEM_BYTES]):
        raise ValueError(f"{shard.path}: its checksums are damaged; copy it again, or {REMEDY}")
    if found[-2] != zlib.crc32(os.pread(shard.fd, shard.table_start, 0)):
        raise ValueError(f"{shard.path}: its header is not as it was written; copy it again, or {REMEDY}")
    return found[:-_NUM_FURTHER]


def is_as_written(shard: Shard, index: int, data: bytes, checksum: int) -> bool:
    """Whether a sample's row and data have their checksum."""
    return zlib.crc32(data, zlib.crc32(shard.row_bytes(index))) == checksum
