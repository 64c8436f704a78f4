"""The writer of a dataset file's bytes: pages, tables, checksums; its allocation table is in sample order."""

import os
from array import array
from pathlib import Path

import numpy as np

from fastpsl.files.atomic import PartialFile, write_all
from fastpsl.files.digest import sha256
from fastpsl.pipelines.beton.encode import Stored
from fastpsl.pipelines.beton.shard import ALLOCATION, FIELD, HEADER, IMAGE_TYPE, INT_TYPE, VERSION, row_dtype
from fastpsl.pipelines.beton.sidecar import MARK, Checksums

MIN_PAGE_BYTES, MAX_PAGE_BYTES = 1 << 21, 1 << 31  # ffcv/writer.py
# So much of data and of rows (24 bytes each) is held in memory, for one call of `pwrite` (not measured).
_BUFFER_BYTES = 1 << 22
_ROWS_BUFFERED = 1 << 14
_ROW = row_dtype((IMAGE_TYPE, INT_TYPE))
_TABLE_START = HEADER.itemsize + 2 * FIELD.itemsize


def rows_in_a_page(page_bytes: int) -> int:
    """Return how many samples' rows fit before the data, where these begin with the second page."""
    return (page_bytes - _TABLE_START) // _ROW.itemsize


class BetonFile:
    """A dataset file that is being written, sample by sample; it holds a few MB and 8 bytes per sample."""

    def __init__(self, path: Path, max_samples: int, page_bytes: int, again: bool = False):
        assert page_bytes & (page_bytes - 1) == 0 and MIN_PAGE_BYTES <= page_bytes <= MAX_PAGE_BYTES
        self.file, self._again = PartialFile(path, keep=again), again
        self.page_bytes, self.max_samples, self.num_samples = page_bytes, max_samples, 0
        table_end = _TABLE_START + max_samples * _ROW.itemsize
        self.data_start = -(-table_end // page_bytes) * page_bytes
        # The bytes up to _written are on disk, those up to _end in the buffer.
        self._written = self._end = self.data_start
        self._buffer = bytearray()
        self._rows = np.zeros(_ROWS_BUFFERED, _ROW)
        self._sizes = array("I")
        self._checksums = Checksums()
        self._digest = sha256()

    @property
    def num_bytes(self) -> int:
        """The bytes up to the last sample, the tables not counted that follow it."""
        return self._end

    def has_room(self, num_bytes: int, max_bytes: int) -> bool:
        """Return whether one more sample leaves the file, with its tables, within `max_bytes`."""
        after = (self.num_samples + 1) * (ALLOCATION.itemsize + 4)
        return self.num_samples < self.max_samples and self._end + num_bytes + after <= max_bytes

    def next_data(self, num_bytes: int) -> bytes:
        """Return the data of the next sample as a former run has written it; fewer bytes where it has not."""
        return os.pread(self.file.fd, num_bytes, self._end + self._padding(num_bytes))

    def go_on(self) -> None:
        """Write from here on; what the partial file holds beyond this point is dropped."""
        self.flush()
        self._again = False
        os.ftruncate(self.file.fd, self._end)

    def _padding(self, num_bytes: int) -> int:
        """Return how far a sample lies behind the one before it.

        A sample larger than a page doubles the page. The larger pages begin where smaller ones did, so
        earlier samples do not cross them either.
        """
        while num_bytes > self.page_bytes:
            self.page_bytes *= 2
        page_rest = -self._end % self.page_bytes
        return page_rest if num_bytes > page_rest else 0

    def add(self, stored: Stored, label: int) -> int:
        """Append one sample."""
        assert self.num_samples < self.max_samples and len(stored.data) <= MAX_PAGE_BYTES
        self._append(bytes(self._padding(len(stored.data))))
        row = self._rows[self.num_samples % _ROWS_BUFFERED]
        image = row["f0"]
        image["mode"], image["width"], image["height"] = stored.mode, stored.width, stored.height
        image["data_ptr"], row["f1"] = self._end, label
        self._append(stored.data)
        self._sizes.append(len(stored.data))
        checksum = self._checksums.add(row.tobytes(), stored.data)
        self.num_samples += 1
        if self.num_samples % _ROWS_BUFFERED == 0:
            self._flush_rows(_ROWS_BUFFERED)
        return checksum

    def _append(self, data: bytes) -> None:
        self._buffer += data
        self._end += len(data)
        if len(self._buffer) >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the samples' data that are in memory; their rows may stay there."""
        if not self._again:  # then the bytes come from the file itself
            write_all(self.file.fd, memoryview(self._buffer), self._written)
        self._digest.update(self._buffer)
        self._written += len(self._buffer)
        self._buffer = bytearray()

    def _flush_rows(self, num: int) -> None:
        first = self.num_samples - num
        write_all(self.file.fd, self._rows[:num].tobytes(), _TABLE_START + first * _ROW.itemsize)

    def finish(self) -> str:
        """Write the checksums, the tables and the header."""
        fd = self.file.fd
        self._flush_rows(self.num_samples % _ROWS_BUFFERED)
        head = self._head(self._end + self._checksums.num_bytes)
        self._append(self._checksums.finish(head))
        for first in range(0, self.num_samples, _ROWS_BUFFERED):
            num = min(_ROWS_BUFFERED, self.num_samples - first)
            raw = os.pread(fd, num * _ROW.itemsize, _TABLE_START + first * _ROW.itemsize)
            table = np.empty(num, ALLOCATION)
            table["sample_id"] = np.arange(first, first + num)
            table["ptr"] = np.frombuffer(raw, _ROW)["f0"]["data_ptr"]
            table["size"] = self._sizes[first : first + num]
            self._append(table.tobytes())
        self.flush()
        # Last, because a file whose header points to no table counts as unfinished.
        write_all(fd, head, 0)
        for offset in range(0, self.data_start, _BUFFER_BYTES):
            self._digest.update(os.pread(fd, min(_BUFFER_BYTES, self.data_start - offset), offset))
        return self._digest.hexdigest()

    def _head(self, alloc: int) -> bytes:
        """Return the header and the field descriptors; the allocation table begins at `alloc`."""
        header, fields = np.zeros(1, HEADER), np.zeros(2, FIELD)
        header[0] = (VERSION, 2, self.page_bytes, self.num_samples, alloc)
        for descriptor, type_id, name in zip(
            fields, (IMAGE_TYPE, INT_TYPE), (b"image", b"label"), strict=True
        ):
            descriptor["type_id"] = type_id
            descriptor["name"][: len(name)] = np.frombuffer(name, np.uint8)
        fields[0]["arguments"][: len(MARK)] = np.frombuffer(MARK, np.uint8)
        return header.tobytes() + fields.tobytes()
