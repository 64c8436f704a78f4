"""Locks between processes, which end with the process. No other module of fastpsl calls flock.

Some file systems have no locks. There everybody goes on: files are renamed into place whole, so at worst two
processes do the same work.
"""

import errno
import fcntl
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fastpsl.console.progress import operation

_POLL_S = 0.02  # a wait ends so much late at most; a try is one system call
# struct flock: type, whence, start, length, pid (which must be 0).
_FLOCK = "hhqqi4x"


class BusyError(OSError):
    """An error of something that is in use, and may be free later."""


def try_lock(file: int | IO, shared: bool = False) -> bool | None:
    """Lock an open file until it is closed.

    Args:
        file: The file, or its descriptor.
        shared: Whether others may have a shared lock, too.

    Returns:
        True; False where another holder excludes it; None where the file system has no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def locked(path: Path, waiting: str, limit_s: float = float("inf")) -> Iterator[None]:
    """Hold the lock of a file, which is made where it is missing.

    Args:
        path: The file. Nothing is written into it.
        waiting: What is told while another process holds it.
        limit_s: How long to wait, in seconds.

    Raises:
        BusyError: Another process has held the lock for `limit_s`.
        OSError: The file cannot be opened.
    """
    with open(path, "a") as file:
        if try_lock(file) is False:
            deadline = time.monotonic() + limit_s
            with operation(waiting):
                while try_lock(file) is False:  # no blocking call: it would not end at the limit
                    if time.monotonic() > deadline:
                        raise BusyError(errno.EBUSY, "another process does not leave its lock")
                    time.sleep(_POLL_S)
        yield


class PartLocks:
    """The locks of a file's parts, by number, through an open file.

    Each opening of the file is a holder of its own. These are Linux's "open file description" locks
    (F_OFD_SETLK). Unlike those of lockf, they also exclude two holders in one process.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def try_shared(self, number: int) -> bool:
        """Take a shared lock, or turn an exclusive one into it; return False if another holder has that."""
        return self._set(fcntl.F_RDLCK, number)

    def try_exclusive(self, number: int) -> bool:
        """Take an exclusive lock; return False if another holder has any."""
        return self._set(fcntl.F_WRLCK, number)

    def release(self, number: int) -> None:
        """Give a lock back."""
        self._set(fcntl.F_UNLCK, number)

    def _set(self, kind: int, number: int) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, 0, number, 1, 0))
        except BlockingIOError:
            return False
        return True
