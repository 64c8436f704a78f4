"""A bounded cache of remote files on local disk, which all processes of a machine share.

A remote file is a sparse local file of its size. Its parts, such as the pages of a dataset file, are fetched
one by one, and given up by punching holes. So what reads a local dataset file reads this one, too.

    CACHE/lock                        held while room is made
    CACHE/files/ID/data.beton         the sparse file; ID is a digest of its address, size and version
    CACHE/files/ID/data.beton.parts   a row per part: start, stop, time of last use, which is 0 for an absent
                                      one
    CACHE/files/ID/data.beton.json    the JSON beside a dataset file

Each process holds a shared lock, in the file of parts, on each part that it uses. An exclusive one is needed
to fetch a part, and to give it up. A process that is killed leaves no lock. A cache is good until the machine
starts anew.
"""

import ctypes
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import numpy as np

from fastpsl.files.atomic import Uncopyable, write_all, write_atomically
from fastpsl.files.digest import blake2b
from fastpsl.files.locks import BusyError, PartLocks, locked
from fastpsl.files.remote.address import RemoteObject
from fastpsl.files.system_errors import remedy

_PUNCH_HOLE = 0x03  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_SHARE_OF_DISK = 0.8  # of what is free, where no bound is given; the rest is left to other programs
# Room is made for a 32nd of the bound more than is needed, because each time all lists of parts are read. A
# larger share would give up more of what is needed again (not measured).
_SHARE_AT_ONCE = 32
_OPEN_LIMIT_S = 30.0  # for the lock, which others hold while they make room: some seconds at most (a guess)
# 24 bytes, aligned, so that other processes see an old or a new number, never a half. `time` is in seconds
# since 1970, which 32 bits hold until 2106.
_PART = np.dtype([("start", "<i8"), ("stop", "<i8"), ("time", "<u4")], align=True)
_IS_OPEN = 1 << 40  # the lock of every process that has the file open, beyond all parts
_NAME = "data.beton"  # not the remote file's, which may be too long, or end as a list of parts does


class CacheFullError(BusyError):
    """A cache of which all parts are in use."""


@contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError of the files in a cache's folder into a ValueError of one line."""
    try:
        yield
    except OSError as error:
        advice = remedy(error, "give a folder on a local disk that has room")
        raise ValueError(f"--cache-dir {folder}: cannot be used ({error.strerror}); {advice}") from None


class Cache:
    """A cache in a folder, bounded by `max_gb` in 10^9 bytes.

    The default folder is $FASTPSL_CACHE_DIR, or one of this user's among temporary files, which are on a
    local disk on most machines. The default bound is 80 % of what the disk has free and the cache holds.
    """

    def __init__(self, folder: Path | None = None, max_gb: float | None = None) -> None:
        own = Path(tempfile.gettempdir()) / f"fastpsl-data-{os.getuid()}"
        self.folder = folder or Path(os.environ.get("FASTPSL_CACHE_DIR") or own)
        if max_gb is not None and not max_gb > 0:
            raise ValueError(f"--cache-gb {max_gb:g}: it must be above 0")
        with cache_errors(self.folder):
            self._files = self.folder / "files"
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Among temporary files anybody may make a folder of this name, and change the data in it later.
            if self.folder.stat().st_uid != os.getuid():
                raise ValueError(
                    f"--cache-dir {self.folder}: belongs to another user; give a folder of your own"
                )
            self._files.mkdir(exist_ok=True)
            (self.folder / "lock").touch()  # `locked` would make it, but here an error names the option
            _require_holes(self.folder)
            free = shutil.disk_usage(self.folder).free + self.num_bytes()
        self.max_bytes = int(max_gb * 1e9 if max_gb is not None else _SHARE_OF_DISK * free)
        if self.max_bytes > free:
            raise ValueError(
                f"--cache-gb {max_gb:g}: {self.folder} has {free / 1e9:.1f} GB; "
                f"give at most --cache-gb {int(free / 1e9)}, or another --cache-dir"
            )

    def open(self, remote: RemoteObject, parts: np.ndarray) -> "CachedFile":
        """Open a remote file's place in the cache.

        `parts` has the start and stop of each part, int64 [num_parts, 2], in bytes, without overlaps.
        """
        # By the boot, because bytes that count as present may not be on the disk when the machine stops. By
        # the parts, because all processes write the list of parts. 80 bits tell all keys apart.
        key = f"{_boot()}\n{remote.address}\n{remote.num_bytes}\n{remote.version}\n".encode()
        place = self._files / blake2b(key + parts.tobytes(), digest_size=10).hexdigest()
        # Locked, because `_give_up` removes folders that nobody has open.
        with cache_errors(self.folder), self._locked(_OPEN_LIMIT_S):
            place.mkdir(exist_ok=True)
            return CachedFile(self, place / _NAME, remote, parts)

    def keep(self, path: Path, data: bytes | None) -> None:
        """Let a small file beside a cached one hold these bytes, or be absent.

        It is changed only if it differs, because other processes read it. Raises ValueError as `open`.
        """
        with cache_errors(self.folder), self._locked(_OPEN_LIMIT_S):
            if data is None:
                path.unlink(missing_ok=True)
            elif not path.exists() or path.read_bytes() != data:
                write_atomically(path, data)

    def make_room(self, file: "CachedFile", part: int, limit_s: float) -> None:
        """Allocate the disk's space for a part, and give up the parts unused for longest if there is none."""
        start, stop = file.parts[part].tolist()
        with self._locked(limit_s):
            # Counted anew, because other processes take room, too: three calls of stat for each file.
            too_many = self.num_bytes() + stop - start - self.max_bytes
            if too_many > 0:
                freed = self._give_up(too_many + self.max_bytes // _SHARE_AT_ONCE)
                if freed < too_many:
                    raise CacheFullError(errno.ENOSPC, f"all of its {self.max_bytes / 1e9:.1f} GB are in use")
            # Under the lock, because others count the bytes by what the disk has allocated.
            os.posix_fallocate(file.fd, start, stop - start)

    def num_bytes(self) -> int:
        """Return the bytes that the cache's files take on the disk."""
        num_blocks = 0
        for place in os.scandir(self._files):
            with suppress(FileNotFoundError, NotADirectoryError):  # removed meanwhile, or no folder of ours
                num_blocks += sum(entry.stat().st_blocks for entry in os.scandir(place.path))
        return 512 * num_blocks  # st_blocks counts 512 bytes, whatever the disk's blocks are

    def _give_up(self, num_bytes: int) -> int:
        """Give up parts that nobody uses, the oldest first, for `num_bytes`; return how many were freed."""
        opened, oldest_first = list[_Evictable](), list[tuple[int, int, int]]()
        num_freed = 0
        try:
            for table in self._files.glob("*/*.parts"):
                # None that is being opened: `open` holds the cache's lock, as the caller does.
                if not (table.with_suffix("").exists() and table.stat().st_size):
                    shutil.rmtree(table.parent, ignore_errors=True)  # of a process that was killed meanwhile
                    continue
                opened.append(_Evictable(table))
                times = opened[-1].table["time"]
                oldest_first += [(int(times[i]), len(opened) - 1, int(i)) for i in np.flatnonzero(times)]
            for _, number, part in sorted(oldest_first):
                if num_freed >= num_bytes:
                    break
                num_freed += opened[number].give_up(part)
        finally:
            for file in opened:
                file.close()
        return num_freed

    def _locked(self, limit_s: float) -> AbstractContextManager[None]:
        return locked(self.folder / "lock", f"{self.folder}: waiting for another process", limit_s)


class CachedFile(Uncopyable):
    """A remote file in the cache, opened by `Cache.open`. Any thread may use it, for a part one at a time.

    `fd` is the sparse file at `path`, open to be written. `parts` are starts and stops, int64 [num_parts, 2].
    """

    def __init__(self, cache: Cache, path: Path, remote: RemoteObject, parts: np.ndarray) -> None:
        self._cache, self.path, self.remote, self.parts = cache, path, remote, parts
        self.fd = self._table_fd = -1
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        path, parts = self.path, self.parts
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self.fd, self.remote.num_bytes)  # holes, which take no room
        self._table_fd = os.open(f"{path}.parts", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._table_fd, len(parts) * _PART.itemsize)
        # By a descriptor of its own: one that shares the locks' would keep them after `close`.
        self._table = np.memmap(f"{path}.parts", _PART, "r+", shape=(len(parts),))
        # Written each time, because a process that was killed here has left zeros. Others write the same: the
        # folder's name has a digest of the parts.
        self._table["start"], self._table["stop"] = parts.T
        self._locks = PartLocks(self._table_fd)
        # So that nobody removes the files, even when they have no part. It cannot fail: whoever wants it
        # alone has the cache's lock, too (`_Evictable.close`).
        self._locks.try_shared(_IS_OPEN)

    def is_present(self, part: int) -> bool:
        """Return whether the bytes of a part are there. They stay only if the part is held or claimed."""
        return bool(self._table["time"][part])

    def hold(self, part: int) -> bool:
        """Keep a part from being given up, if it is there; return whether it is."""
        if not self.is_present(part) or not self._locks.try_shared(part):
            return False
        if not self.is_present(part):  # it was given up in between
            self._locks.release(part)
            return False
        return True

    def claim(self, part: int) -> bool:
        """Claim the fetching of a part; return False where another process has it or fetches it."""
        return self._locks.try_exclusive(part)

    def fill(self, part: int, data: bytes, limit_s: float) -> None:
        """Write the bytes of a claimed part, which is held from then on.

        Another process that makes room is waited for, at most `limit_s`.
        """
        self._cache.make_room(self, part, limit_s)
        write_all(self.fd, data, int(self.parts[part, 0]))
        self._table["time"][part] = _now()  # after the bytes, because from here on the part counts as present
        self._locks.try_shared(part)  # the exclusive one becomes a shared one, so others may use it, too

    def give_back(self, part: int) -> None:
        """End the hold or the claim of a part. It stays until its room is needed."""
        if self.is_present(part):
            self._table["time"][part] = _now()  # first: once released, another process may take its room
        self._locks.release(part)

    def close(self) -> None:
        """Close the files, which ends all holds."""
        self.__dict__.pop("_table", None)  # which unmaps it; there is none where `_open` has failed
        for fd in (self.fd, self._table_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self._table_fd = -1


class _Evictable(Uncopyable):
    """A file of the cache, opened to give up its parts. This process's own holds exclude it, too."""

    def __init__(self, table: Path) -> None:
        self._place = table.parent
        self._table_fd = os.open(table, os.O_RDWR | os.O_CLOEXEC)
        self._fd = os.open(table.with_suffix(""), os.O_RDWR | os.O_CLOEXEC)
        self.table = np.memmap(table, _PART, "r+")
        self._locks = PartLocks(self._table_fd)

    def give_up(self, part: int) -> int:
        """Punch out a part unless it is in use; return its bytes, or 0."""
        if not self._locks.try_exclusive(part):
            return 0
        start, stop = int(self.table["start"][part]), int(self.table["stop"][part])
        self.table["time"][part] = 0  # first: killed in between, this process would leave zeros as bytes
        _punch(self._fd, start, stop - start)
        self._locks.release(part)
        return stop - start

    def close(self) -> None:
        """Close the file, and remove it if it is empty and nobody has it open."""
        # Still true below: only who holds `_IS_OPEN` sets a time, and then the lock is refused.
        is_empty = not self.table["time"].any()
        del self.table
        if is_empty and self._locks.try_exclusive(_IS_OPEN):
            shutil.rmtree(self._place, ignore_errors=True)
        os.close(self._fd)
        os.close(self._table_fd)


def _punch(fd: int, start: int, num_bytes: int) -> None:
    """Give a stretch of a file back to the disk; it reads as zeros then."""
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if fallocate(fd, _PUNCH_HOLE, start, num_bytes):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _require_holes(folder: Path) -> None:
    """Raise OSError unless files in the folder can be written, and parts of them given up."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(8192))  # two blocks of most file systems, of which the first can be given up whole
        file.flush()
        _punch(file.fileno(), 0, 4096)


def _boot() -> str:
    """Return the identity of the machine's last start."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _now() -> int:
    return int(time.time())
