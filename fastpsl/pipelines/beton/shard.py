"""One dataset file: FFCV's format, version 2, with its tables opened and checked.

The file begins with a header, the field descriptors and a table with one row per sample (per field: image
mode, width, height, pointer; label). Pages of data follow, and no sample crosses two of them. At the end is
the allocation table (sample, pointer, size), the only place that holds each sample's length. fastpsl writes
checksums before it (sidecar.py). The layout follows ffcv/types.py and ffcv/writer.py of ffcv 1.0.2.
"""

import ctypes
import functools
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastpsl.files.atomic import Uncopyable
from fastpsl.files.system_errors import input_error, raise_of_the_system
from fastpsl.kernels.c_library import open_library
from fastpsl.pipelines.interface.dataset import (
    MAX_PIXELS,
    MODE_COEFFICIENTS,
    MODE_JPEG,
    MODE_RAW,
    written_when,
)


class TruncatedError(Exception):
    """A file that ends before the rows that were asked for."""


class Table:
    """The rows of one dtype in an open file, from the byte `start` on."""

    def __init__(self, fd: int, start: int, row: np.dtype, num_rows: int) -> None:
        self._fd, self._start, self._row, self._num_rows = fd, start, row, num_rows

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, which: "slice | np.ndarray") -> np.ndarray:
        """Return the rows of a slice without a step, or of indices in [0, num_rows), int64."""
        if not isinstance(which, slice):
            return self._rows(np.ascontiguousarray(which, np.int64))
        first, end, _ = which.indices(self._num_rows)
        out = np.empty(max(0, end - first), self._row)
        view, place = out.view(np.uint8).data, self._start + first * self._row.itemsize
        # Not by a memory map, which would end the process with SIGBUS where the file is cut short.
        while view:  # a call reads 2 GiB at most
            num_read = os.preadv(self._fd, [view], place)
            if not num_read:
                raise TruncatedError
            view, place = view[num_read:], place + num_read
        return out

    def _rows(self, indices: np.ndarray) -> np.ndarray:
        out = np.empty(len(indices), self._row)
        size = self._row.itemsize
        if (c_library := library()) is not None:
            num_read = c_library.fastpsl_read_rows(
                self._fd, self._start, size, indices.ctypes.data, len(indices), out.ctypes.data
            )
        else:
            rows = [os.pread(self._fd, size, self._start + i * size) for i in indices.tolist()]
            num_read = sum(len(row) == size for row in rows)
            if num_read == len(out):
                out = np.frombuffer(b"".join(rows), self._row)
        if num_read < 0:
            raise OSError(-num_read, os.strerror(-num_read))
        if num_read < len(out):
            raise TruncatedError
        return out


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the library, loaded once per process, or None where it was not built or does not load."""
    try:
        library = open_library("fastpsl.pipelines.beton._read_rows")
    except OSError as error:
        raise_of_the_system("fastpsl's C library", error)
        return None
    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    library.fastpsl_read_rows.argtypes = [ctypes.c_int, i64, i64, pointer, i64, pointer]
    library.fastpsl_read_rows.restype = i64
    return library


# As ffcv/types.py of ffcv 1.0.2 has them, alignment included.
VERSION = 2
_HEADER = {"version": "<u2", "num_fields": "<u2", "page_size": "<u4", "num_samples": "<u8"}
HEADER = np.dtype([*_HEADER.items(), ("alloc_table_ptr", "<u8")], align=True)
FIELD = np.dtype([("type_id", "u1"), ("name", "u1", (16,)), ("arguments", "u1", (1024,))], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
LABEL = np.dtype("<i8")
# ffcv's field types and the dtype of each in a sample's row: float, int, image, bytes, array, JSON, tensor.
_BYTES = np.dtype([("ptr", "<u8"), ("size", "<u8")])
_WORD = np.dtype("<u8")
ROW_OF_TYPE = dict(enumerate([np.dtype("<f8"), LABEL, IMAGE, _BYTES, _WORD, _BYTES, _WORD]))
INT_TYPE, IMAGE_TYPE = 1, 2
# The modes of images: the first two are ffcv's own.
JPG, RAW, COEFFICIENTS = MODE_JPEG, MODE_RAW, MODE_COEFFICIENTS
MAX_LABEL = 2**31 - 1  # `labels` hands out int32
CHUNK = 1 << 18  # samples checked at a time, so that a thread's temporaries stay near 20 MB
_NUM_CHECKERS = 4  # one computes the checksum, which takes as long as the other checks on one core

REMEDY = "write it again with `fastpsl data write`"
COPY_AGAIN = f"copy it again, or {REMEDY}"
_MAKE = "give a .beton file, which `fastpsl data write` makes"
_OVERWRITTEN = "put the old file back, or start anew; write new data under another name and rename it"


def row_dtype(type_ids: Sequence[int]) -> np.dtype:
    """Return the dtype of a table row with fields of these types, which are named f0, f1, ..."""
    return np.dtype([(f"f{i}", ROW_OF_TYPE[type_id]) for i, type_id in enumerate(type_ids)], align=True)


def chunks(num: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, num)) for start in range(0, num, CHUNK))


def holds_tables(num_bytes: int, num_samples: int, table_end: int, alloc: int) -> bool:
    """Return whether a file of so many bytes has the tables that its header tells of."""
    num_allocations, rest = divmod(num_bytes - alloc, ALLOCATION.itemsize)
    return table_end <= alloc and num_samples <= num_allocations and not rest


class _Ranges(NamedTuple):
    """The ranges that the rows of samples keep to."""

    min_height: int
    min_width: int
    max_height: int
    max_width: int
    max_bytes: int
    max_label: int
    num_raw: int
    num_packed: int

    @classmethod
    def of_all(cls, parts: "Sequence[_Ranges]") -> "_Ranges":
        height, width, max_height, max_width, num_bytes, label, *counts = zip(*parts, strict=True)
        largest = max(max_height), max(max_width), max(num_bytes), max(label)
        return cls(min(height), min(width), *largest, *map(sum, counts))


class Shard(Uncopyable):
    """One dataset file, opened and checked; `Beton` is the interface."""

    def __init__(self, path: Path, num_classes: int | None = None, name: str | None = None):
        """Open a file and check its tables."""
        self.path, self.name = path, str(path) if name is None else name
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise input_error(path, error) from None
        try:
            self._open_tables()
            with ThreadPoolExecutor(_NUM_CHECKERS) as pool:
                crc = pool.submit(self._tables_crc)  # first, because it takes the longest
                check = partial(self._check_rows_of, num_classes)
                ranges = _Ranges.of_all(list(pool.map(check, chunks(self.num_samples))))
                self.opened_crc = crc.result()
            self.min_height, self.min_width, self.max_height, self.max_width = ranges[:4]
            self.max_bytes, self.max_label, self.num_raw, self.num_packed = ranges[4:]
        except OSError as error:
            self.close()
            raise input_error(path, error) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for name in ("_table", "_allocations", "_sizes"):  # the number of a closed file may be another's soon
            self.__dict__.pop(name, None)
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def _refuse(self, fault: str, remedy: str = REMEDY) -> ValueError:
        return ValueError(f"{self.name}: {fault}; {remedy}")

    def _open_tables(self) -> None:
        status = os.fstat(self.fd)  # before any reading, so that later writing is noticed
        self.file_size, self._written_when = status.st_size, written_when(status)
        head = os.pread(self.fd, HEADER.itemsize, 0)
        if not head:
            raise self._refuse("is empty", COPY_AGAIN)
        if len(head) < HEADER.itemsize:
            raise self._refuse(f"is no dataset file ({len(head)} bytes, shorter than a header)", _MAKE)
        header = np.frombuffer(head, HEADER)[0]
        # No data set has more than 256 fields, of 1 KiB each: such bytes are another format's.
        if header["version"] != VERSION or not 1 <= header["num_fields"] <= 256:
            raise self._refuse("is no dataset file of FFCV's format 2, as its first bytes show", _MAKE)
        self.num_samples, self.page_size = int(header["num_samples"]), int(header["page_size"])
        num_fields, alloc = int(header["num_fields"]), int(header["alloc_table_ptr"])

        raw = os.pread(self.fd, num_fields * FIELD.itemsize, HEADER.itemsize)
        if len(raw) < num_fields * FIELD.itemsize:
            raise self._refuse("is truncated within its field descriptors", COPY_AGAIN)
        fields = np.frombuffer(raw, FIELD)
        type_ids = [int(type_id) for type_id in fields["type_id"]]
        for type_id in type_ids:
            if type_id not in ROW_OF_TYPE:
                raise self._refuse(f"has a field of type {type_id}, known are FFCV's own 0 to 6")
        if IMAGE_TYPE not in type_ids:
            raise self._refuse("lacks an RGBImageField")
        self._image = f"f{type_ids.index(IMAGE_TYPE)}"
        self._label = f"f{type_ids.index(INT_TYPE)}" if INT_TYPE in type_ids else None
        # Beside an image, without integers: fields that may be meant as labels.
        self.no_labels = [
            bytes(field["name"]).rstrip(b"\0").decode("utf-8", "replace")
            for field, type_id in zip(fields, type_ids, strict=True)
            if self._label is None and type_id != IMAGE_TYPE
        ]

        row = row_dtype(type_ids)
        if self.num_samples == 0:
            raise self._refuse("holds no samples")
        if alloc == 0:
            raise self._refuse("was never finished (its writer was stopped)")
        # Check the counts against the file's size before mapping anything of that size.
        self.table_start = HEADER.itemsize + num_fields * FIELD.itemsize
        self.table_end, self.alloc = self.table_start + self.num_samples * row.itemsize, alloc
        if not holds_tables(self.file_size, self.num_samples, self.table_end, alloc):
            raise self._refuse(
                f"is truncated or damaged ({self.file_size:,} bytes do not hold the tables "
                f"of {self.num_samples:,} samples)",
                COPY_AGAIN,
            )
        self._table = Table(self.fd, self.table_start, row, self.num_samples)
        self._allocations = Table(self.fd, alloc, ALLOCATION, (self.file_size - alloc) // ALLOCATION.itemsize)
        self._sizes = self._joined_sizes()

    def _joined_sizes(self) -> np.ndarray | None:
        """Return sizes by sample (uint32); None when the allocation table is in sample order."""
        if len(self._allocations) == self.num_samples and all(
            np.array_equal(self._pointers(part), self._read(self._allocations, part)["ptr"])
            for part in chunks(self.num_samples)
        ):
            return None  # sizes are read from the table then, and take no memory
        allocations = self._read(self._allocations, slice(None))
        allocations = allocations[np.argsort(allocations["ptr"], kind="stable")]
        ordered = np.ascontiguousarray(allocations["ptr"])
        sizes = np.empty(self.num_samples, np.uint32)
        for part in chunks(self.num_samples):
            part_pointers = self._pointers(part)
            # A pointer beyond the last one has no place, and is refused below.
            places = np.minimum(np.searchsorted(ordered, part_pointers), len(ordered) - 1)
            unallocated = np.flatnonzero(ordered[places] != part_pointers)
            if len(unallocated):
                raise self._refuse(
                    f"sample {part.start + unallocated[0]} has no entry in the allocation table"
                )
            part_sizes = allocations["size"][places]
            if part_sizes.max() > 0xFFFFFFFF:
                raise self._refuse(
                    f"sample {part.start + int(part_sizes.argmax())} is larger than a page can be"
                )
            sizes[part] = part_sizes
        return sizes

    def sizes(self, index: "slice | np.ndarray") -> np.ndarray:
        """Return the sizes of samples in bytes, uint32 or uint64."""
        return self._read(self._allocations, index)["size"] if self._sizes is None else self._sizes[index]

    def table(self, index: "slice | np.ndarray") -> tuple[np.ndarray, np.ndarray]:
        """Return the image parts (IMAGE) and the labels (int64, -1 without an IntField) of samples' rows."""
        rows = self._read(self._table, index)
        labels = np.full(len(rows), -1, LABEL) if self._label is None else rows[self._label]
        return rows[self._image], labels

    def row_bytes(self, index: int) -> bytes:
        """Return a sample's row of the table as it is on disk."""
        return self._read(self._table, slice(index, index + 1)).tobytes()

    def _pointers(self, part: slice) -> np.ndarray:
        return np.ascontiguousarray(self.table(part)[0]["data_ptr"])

    def _read(self, table: Table, index: "slice | np.ndarray") -> np.ndarray:
        try:
            return table[index]
        except TruncatedError:
            raise self._refuse("was truncated while it was in use", COPY_AGAIN) from None

    def check_unchanged(self) -> None:
        """Check that nobody has written to the file since it was opened.

        A new file renamed into its place is no error, because this one stays open.
        """
        status = os.fstat(self.fd)
        if status.st_size < self.file_size:
            raise self._refuse("was truncated while it was in use", COPY_AGAIN)
        if written_when(status) != self._written_when:
            # `touch` and `chmod` change the times alone. Other samples have other tables or other checksums.
            if status.st_size != self.file_size or self._tables_crc() != self.opened_crc:
                raise self._refuse("was overwritten while it was in use", _OVERWRITTEN)
            self._written_when = written_when(status)

    def _tables_crc(self) -> int:
        """Return the CRC-32 of both tables and of the samples' checksums before the second, if any."""
        # 4 bytes each, as in sidecar.py, which imports this file. Without any, data are read instead.
        start = max(self.alloc - 4 * (self.num_samples + 2), self.table_end)
        crc = zlib.crc32(os.pread(self.fd, self.alloc - start, start))
        for part in chunks(self.num_samples):
            for table in (self._table, self._allocations):
                crc = zlib.crc32(self._read(table, part).tobytes(), crc)
        return crc

    def check_rows(self, images: np.ndarray, sizes: np.ndarray, labels: np.ndarray) -> None:
        """Raise ValueError for rows outside the ranges found on opening: the file is being overwritten."""
        heights, widths = images["height"], images["width"]
        is_known = (
            (heights >= self.min_height) & (heights <= self.max_height)
            & (widths >= self.min_width) & (widths <= self.max_width)
            & (sizes <= self.max_bytes) & (labels >= -1) & (labels <= self.max_label)
        )  # fmt: skip
        if not is_known.all():
            raise self._refuse("was overwritten while it was in use", _OVERWRITTEN)

    def _check_rows_of(self, num_classes: int | None, part: slice) -> "_Ranges":
        """Check the rows of a chunk of samples, and return their ranges."""
        images, labels = self.table(part)
        pointers, sizes = images["data_ptr"].astype(np.uint64), self.sizes(part).astype(np.uint64)
        heights, widths, modes = images["height"], images["width"], images["mode"]
        end = np.uint64(self.alloc)
        self._refuse_where(part, (heights == 0) | (widths == 0), "has a side of 0 px")
        is_packed = modes == COEFFICIENTS
        self._refuse_where(
            part,
            (modes > RAW) & ~is_packed,
            "has an unknown image mode (known: 0, 1 and 3)",
        )
        outside = (pointers < self.table_end) | (pointers > end) | (sizes > end) | (sizes == 0)
        outside |= pointers + sizes > end  # after the others, which exclude an overflow
        self._refuse_where(part, outside, "lies outside of the file's data")
        pixels = heights.astype(np.uint64) * widths
        self._refuse_where(
            part, (modes == RAW) & (sizes != 3 * pixels), "is raw, and its length is not height * width * 3"
        )
        self._refuse_where(
            part, (modes != RAW) & (pixels > MAX_PIXELS), f"is a JPEG of more than {MAX_PIXELS:,} pixels"
        )
        self._refuse_where(part, labels < -1, "has a label below -1")
        if num_classes is None:
            self._refuse_where(part, labels > MAX_LABEL, "has a label beyond int32")
        else:
            fault = f"has a label above {num_classes - 1}, the last of its class names"
            self._refuse_where(part, labels >= num_classes, fault)
        return _Ranges(
            int(heights.min()), int(widths.min()), int(heights.max()), int(widths.max()),
            int(sizes.max()), int(labels.max()), int((modes == RAW).sum()), int(is_packed.sum()),
        )  # fmt: skip

    def _refuse_where(self, part: slice, bad: np.ndarray, fault: str) -> None:
        if bad.any():
            first, num_others = part.start + int(bad.argmax()), int(bad.sum()) - 1
            raise self._refuse(
                f"sample {first} {fault}" + (f" (and {num_others:,} more)" if num_others else "")
            )
