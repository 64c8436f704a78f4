"""The file side of writing a beton: pages, tables, checksum; under another name until it is whole.

`train.beton` is written as `.train.beton.partial` in the same folder, fsynced, renamed. A file left there by
a killed run is taken over by the next one; a lock keeps two writers apart. The allocation table is in sample
order.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastpsl.pipelines.beton.checksums import MARK, Checksums
from fastpsl.pipelines.beton.encode import Stored
from fastpsl.pipelines.beton.shard import ALLOCATION, FIELD, HEADER, IMAGE_TYPE, INT_TYPE, VERSION, row_dtype

MIN_PAGE_BYTES, MAX_PAGE_BYTES = 1 << 21, 1 << 31  # ffcv/writer.py
_BUFFER_BYTES = 1 << 22
_ROWS_BUFFERED = 1 << 14
_ROW = row_dtype((IMAGE_TYPE, INT_TYPE))
_TABLE_START = HEADER.itemsize + 2 * FIELD.itemsize
_SPACE = "free some space or choose another disk"
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "raise the limit of a file's size (ulimit -f) or choose another disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """What goes wrong in writing `path`, or a file in that folder, as one line."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and Path(error.filename).is_relative_to(path):
            path = Path(error.filename)
        remedy = _REMEDIES.get(error.errno or 0, "choose a folder that can be written")
        raise ValueError(f"{path}: cannot be written ({error.strerror or error}); {remedy}") from None


def partial_path(path: Path) -> Path:
    """The name under which `path` is being written."""
    return path.with_name(f".{path.name}.partial")


class PartialFile:
    """A file under its partial name, locked: `publish` renames it, `discard` removes it, being killed leaves
    it to the next run."""

    def __init__(self, path: Path):
        self.path, self.partial = path, partial_path(path)
        while True:
            self.fd = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self.fd)
                raise ValueError(
                    f"{path}: another process is writing it; wait for it, or choose another name"
                ) from None
            except OSError:
                pass  # a file system without locks
            if self._is_in_place():
                break
            # Renamed by another writer between open and lock: it is no partial file any more.
            os.close(self.fd)
        os.ftruncate(self.fd, 0)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(self.partial))
        except FileNotFoundError:
            return False

    def publish(self) -> None:
        os.fsync(self.fd)
        os.replace(self.partial, self.path)
        self.close()

    def discard(self) -> None:
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self.partial)
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def is_locked(partial: Path) -> bool:
    """Whether another process is writing this partial file, as far as locks tell."""
    with contextlib.suppress(OSError), open(partial, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def write_all(fd: int, data: "bytes | memoryview", offset: int) -> None:
    """pwrite until everything is there."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def publish_bytes(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all."""
    file = PartialFile(path)
    try:
        write_all(file.fd, data, 0)
        file.publish()
    finally:
        file.discard()


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class BetonFile:
    """Samples in, one by one, in order; holds a few MB, and 8 bytes a sample."""

    def __init__(self, path: Path, max_samples: int, page_bytes: int):
        assert page_bytes & (page_bytes - 1) == 0 and MIN_PAGE_BYTES <= page_bytes <= MAX_PAGE_BYTES
        self.file = PartialFile(path)
        self.page_bytes, self.max_samples, self.num_samples = page_bytes, max_samples, 0
        table_end = _TABLE_START + max_samples * _ROW.itemsize
        self.data_start = -(-table_end // page_bytes) * page_bytes
        self._written = self._end = self.data_start  # _written is on disk, up to _end is in the buffer
        self._buffer = bytearray()
        self._rows = np.zeros(_ROWS_BUFFERED, _ROW)
        self._sizes = array("I")
        self._checksums = Checksums()
        self._digest = hashlib.sha256()

    def add(self, stored: Stored, label: int) -> None:
        """Append one sample. A sample larger than a page doubles the page: pages are multiples of their size,
        so what was placed before crosses no larger page either."""
        assert self.num_samples < self.max_samples and len(stored.data) <= MAX_PAGE_BYTES
        while len(stored.data) > self.page_bytes:
            self.page_bytes *= 2
        left = -self._end % self.page_bytes
        if len(stored.data) > left:
            self._append(bytes(left))
        row = self._rows[self.num_samples % _ROWS_BUFFERED]
        image = row["f0"]
        image["mode"], image["width"], image["height"] = stored.mode, stored.width, stored.height
        image["data_ptr"], row["f1"] = self._end, label
        self._append(stored.data)
        self._sizes.append(len(stored.data))
        self._checksums.add(row.tobytes(), stored.data)
        self.num_samples += 1
        if self.num_samples % _ROWS_BUFFERED == 0:
            self._flush_rows(_ROWS_BUFFERED)

    def _append(self, data: bytes) -> None:
        self._buffer += data
        self._end += len(data)
        if len(self._buffer) >= _BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        write_all(self.file.fd, memoryview(self._buffer), self._written)
        self._digest.update(self._buffer)
        self._written += len(self._buffer)
        self._buffer = bytearray()

    def _flush_rows(self, num: int) -> None:
        first = self.num_samples - num
        write_all(self.file.fd, self._rows[:num].tobytes(), _TABLE_START + first * _ROW.itemsize)

    def finish(self) -> str:
        """Checksums, tables and header; the checksum of the file from data_start to its end, then of what is before
        (SHA-256, hex)."""
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
        self._flush()
        write_all(fd, head, 0)
        for offset in range(0, self.data_start, _BUFFER_BYTES):
            self._digest.update(os.pread(fd, min(_BUFFER_BYTES, self.data_start - offset), offset))
        return self._digest.hexdigest()

    def _head(self, alloc: int) -> bytes:
        """Header and field descriptors; alloc: where the allocation table begins."""
        header, fields = np.zeros(1, HEADER), np.zeros(2, FIELD)
        header[0] = (VERSION, 2, self.page_bytes, self.num_samples, alloc)
        for descriptor, type_id, name in zip(
            fields, (IMAGE_TYPE, INT_TYPE), (b"image", b"label"), strict=True
        ):
            descriptor["type_id"] = type_id
            descriptor["name"][: len(name)] = np.frombuffer(name, np.uint8)
        fields[0]["arguments"][: len(MARK)] = np.frombuffer(MARK, np.uint8)
        return header.tobytes() + fields.tobytes()
