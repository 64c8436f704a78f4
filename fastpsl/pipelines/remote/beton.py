"""A dataset file that lives elsewhere: its layout, and its place in the cache, from its first bytes."""

import os
from typing import NamedTuple

import numpy as np
from typing_extensions import override

from fastpsl.files.remote.address import LIMIT_S, RemoteObject, persistently, read_whole
from fastpsl.files.remote.cache import Cache, cache_errors
from fastpsl.pipelines.beton.checksums import (
    MARK,
    MARK_START,
    has_checksums,
    num_checksum_bytes,
    read_checksums,
)
from fastpsl.pipelines.beton.pages import check_pages
from fastpsl.pipelines.beton.shard import (
    FIELD,
    HEADER,
    ROW_OF_TYPE,
    VERSION,
    Shard,
    holds_tables,
    row_dtype,
)
from fastpsl.pipelines.beton.sidecar import sidecar_path

_HEAD_BYTES = 1 << 14  # a header with 15 fields
_DISK_BLOCK = 4096
_PIECE_BYTES = 16 << 20  # of the tables
_SIDECAR_BYTES, _MAX_SIDECAR_BYTES = 16 << 20, 1 << 30  # beside a file without samples, and at most
_MAX_READINGS = 4  # of a stretch whose bytes are in doubt


class Layout(NamedTuple):
    """The places of the parts of a dataset file, in bytes."""

    table_end: int
    tail: int  # the checksums, if there are some, and the allocation table
    page_bytes: int
    has_checksums: bool

    def parts(self, num_bytes: int) -> np.ndarray:
        """Return the start and stop of each part of a file: of its tables, then of its pages."""
        tables = [
            (start, min(start + _PIECE_BYTES, stop))
            for begin, stop in ((0, self.table_end), (self.tail, num_bytes))
            for start in range(begin, stop, _PIECE_BYTES)
        ]
        start = np.arange(0, self.tail, self.page_bytes)
        stop = np.minimum(start + self.page_bytes, self.tail)
        pages = np.stack([np.clip(start, self.table_end, stop), stop], 1)
        return np.concatenate([np.array(tables, np.int64).reshape(-1, 2), pages])

    def num_table_bytes(self, num_bytes: int) -> int:
        """Return the bytes of the tables."""
        return self.table_end + num_bytes - self.tail

    def num_table_parts(self, num_bytes: int) -> int:
        """Return how many of the parts are those of tables."""
        return -(-self.table_end // _PIECE_BYTES) + -(-(num_bytes - self.tail) // _PIECE_BYTES)


def _layout(remote: RemoteObject, head: bytes) -> Layout:
    """Return the layout that a file's first bytes tell.

    Raises:
        ValueError: They are those of no dataset file, or of none that a writer makes.
    """
    header = np.frombuffer(head, HEADER, 1)[0] if len(head) >= HEADER.itemsize else np.zeros((), HEADER)
    num_fields, num_samples = int(header["num_fields"]), int(header["num_samples"])
    table_start, page_bytes = HEADER.itemsize + num_fields * FIELD.itemsize, int(header["page_size"])
    is_known = header["version"] == VERSION and 1 <= num_fields <= 256
    if is_known and len(head) < table_start <= remote.num_bytes:  # it has many fields
        return _layout(remote, _read(remote, 0, table_start))
    is_known &= len(head) >= table_start
    types = np.frombuffer(head, FIELD, num_fields, HEADER.itemsize)["type_id"].tolist() if is_known else []
    if not types or not set(types) <= ROW_OF_TYPE.keys():
        raise ValueError(
            f"{remote.address}: is no dataset file of FFCV's format 2, as its first bytes show; give a "
            ".beton file, which `fastpsl data write` makes"
        )
    table_end = table_start + num_samples * row_dtype(types).itemsize
    alloc = int(header["alloc_table_ptr"])
    has_checksums = head[MARK_START : MARK_START + len(MARK)] == MARK
    tail = alloc - (num_checksum_bytes(num_samples) if has_checksums else 0)
    if not (table_end <= tail and holds_tables(remote.num_bytes, num_samples, table_end, alloc)):
        raise ValueError(
            f"{remote.address}: is not whole, or damaged ({remote.num_bytes:,} bytes do not hold the tables "
            f"of {num_samples:,} samples); upload it again"
        )
    check_pages(remote.address, remote.num_bytes, page_bytes, alloc)
    return Layout(table_end, tail, page_bytes, has_checksums)


class CachedShard(Shard):
    """A dataset file in the cache. It changes while its pages come, and nobody else writes to it."""

    @override
    def _open_tables(self) -> None:
        """Check the checksums, too, because what came over a network may be damaged."""
        super()._open_tables()
        if has_checksums(self):
            read_checksums(self)

    @override
    def check_unchanged(self) -> None:
        """Do nothing."""


def _read(remote: RemoteObject, start: int, stop: int) -> bytes:
    """Return a stretch of a file, which may end before `stop`."""
    stop = min(stop, remote.num_bytes)
    return persistently(lambda: remote.read(start, stop), remote.address, LIMIT_S)


class RemoteBeton:
    """A remote dataset file with a place in the cache.

    Args:
        remote: The file.
        cache: The cache.

    Attributes:
        remote: As given.
        layout: Where its parts lie.
        file: Its place in the cache. The first `num_tables` parts are those of the tables, all others are
            pages.

    Raises:
        ValueError: It cannot be reached, is no dataset file, or does not fit into the cache. The message is
            one line.
    """

    def __init__(self, remote: RemoteObject, cache: Cache) -> None:
        self.remote, self._cache = remote, cache
        self.layout = _layout(remote, _read(remote, 0, _HEAD_BYTES))
        num_table_bytes = self.layout.num_table_bytes(remote.num_bytes)
        if num_table_bytes > cache.max_bytes:
            raise ValueError(
                f"{remote.address}: its tables take {num_table_bytes / 1e9:,.3g} GB, and the cache at most "
                f"{cache.max_bytes / 1e9:,.3g} GB; give a larger --cache-gb, or another file"
            )
        self.file = cache.open(remote, self.layout.parts(remote.num_bytes))
        self.num_tables = self.layout.num_table_parts(remote.num_bytes)
        most = min(_SIDECAR_BYTES + num_table_bytes, _MAX_SIDECAR_BYTES)
        try:
            cache.keep(sidecar_path(self.file.path), read_whole(f"{remote.address}.json", most))
        except BaseException:
            self.file.close()
            raise

    def table_bytes(self) -> int:
        """Return about how many bytes the tables take on the disk, with the list of parts."""
        parts = self.file.parts
        return int(np.diff(parts[: self.num_tables]).sum()) + 24 * len(parts) + 4 * _DISK_BLOCK

    def mend_tables(self) -> bool:
        """Read the tables again, and correct those here where they came damaged; return whether they had.

        Only the header and the samples' checksums have checksums of their own.
        """
        were_damaged = False
        for start, stop in self.file.parts[: self.num_tables].tolist():
            again = self._read_alike(start, stop)
            with cache_errors(self._cache.folder):
                if again is not None and os.pread(self.file.fd, stop - start, start) != again:
                    os.pwrite(self.file.fd, again, start)
                    were_damaged = True
        return were_damaged

    def _read_alike(self, start: int, stop: int) -> bytes | None:
        """Return what two readings of a stretch agree on, or None where all of them differ."""
        seen = set[bytes]()
        for _ in range(_MAX_READINGS):
            data = _read(self.remote, start, stop)
            if data in seen:
                return data
            seen.add(data)
        return None
