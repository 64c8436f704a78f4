"""A table of a dataset file, which stays on disk.

Rows are read by pread. A memory map would end the process with SIGBUS where the file is cut short between a
check and an access.
"""

import ctypes
import functools
import os

import numpy as np

from fastpsl.kernels.c_library import open_library


class TruncatedError(Exception):
    """A file that ends before the rows that were asked for."""


class Table:
    """The rows of one dtype in an open file, from a place on.

    Args:
        fd: The open file.
        start: The place of the first row, in bytes.
        row: The dtype of a row.
        num_rows: The number of rows.
    """

    def __init__(self, fd: int, start: int, row: np.dtype, num_rows: int) -> None:
        self._fd, self._start, self._row, self._num_rows = fd, start, row, num_rows

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, which: "slice | np.ndarray") -> np.ndarray:
        """Return rows.

        Args:
            which: A slice without a step, or indices in [0, num_rows), int64.

        Raises:
            TruncatedError: The file has become too short.
            OSError: The file cannot be read.
        """
        if not isinstance(which, slice):
            return self._rows(np.ascontiguousarray(which, np.int64))
        first, end, _ = which.indices(self._num_rows)
        out = np.empty(max(0, end - first), self._row)
        view, place = out.view(np.uint8).data, self._start + first * self._row.itemsize
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
    except OSError:
        return None
    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    library.fastpsl_read_rows.argtypes = [ctypes.c_int, i64, i64, pointer, i64, pointer]
    library.fastpsl_read_rows.restype = i64
    return library
