"""Locks of the parts of a file, shared or exclusive, that end with the process that holds them."""

import fcntl
import struct

# struct flock: type, whence, start, length, pid (which must be 0).
_FLOCK = "hhqqi4x"


class PartLocks:
    """The locks of a file's parts, by number, through an open file.

    Each opening of the file is a holder of its own. These are Linux's "open file description" locks
    (F_OFD_SETLK). Unlike those of lockf, they also exclude two holders in one process.

    Args:
        fd: The open file, readable and writable. Closing it ends the locks.
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
