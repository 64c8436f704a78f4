"""Files that are at any moment absent, old or whole: written under another name, fsynced, then renamed.

`train.beton` is written as `.train.beton.partial` in the same folder. The next run takes over the partial
file that a killed run left. A lock keeps two writers apart.

Files that are written at once, such as `status.json`, need no lock. Each writing has a temporary name of its
own, `.status.json.PID-TOKEN.tmp`, and the last one to be renamed stays. A killed process leaves it behind,
and nothing reads it.
"""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from typing_extensions import override

from fastpsl.files.digest import blake2b
from fastpsl.files.locks import try_lock


class Uncopyable:
    """An object that refuses to be copied and pickled.

    A copy would have the same descriptor or address by its number. Whichever of the two were closed first
    would close or free what the other one uses.
    """

    @override
    def __reduce_ex__(self, protocol: object) -> Any:
        """Raise TypeError. `copy.copy`, `copy.deepcopy` and pickle all call this."""
        raise TypeError(
            f"{type(self).__name__} cannot be copied or pickled, because it holds open files, threads or "
            "memory of C code; make a new one"
        )


_NAME_LENGTH = 50  # of a file's name within a temporary one, which may have 255 bytes, 4 a letter
_TEMPORARY = re.compile(r"\.(.+)\.\d+-[0-9a-f]{8}\.tmp", re.DOTALL)


def partial_path(path: Path) -> Path:
    """Return the name under which `path` is being written."""
    return path.with_name(f".{path.name}.partial")


class PartialFile(Uncopyable):
    """A locked file under its partial name.

    `publish` renames it and `discard` removes it. A killed run leaves it for the next run.
    """

    def __init__(self, path: Path, partial: Path | None = None, keep: bool = False):
        self.path, self.partial = path, partial or partial_path(path)
        while True:  # until the file that is locked is the one under this name
            self.fd = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if try_lock(self.fd) is False:
                os.close(self.fd)
                raise ValueError(
                    f"{path}: another process is writing it; wait for it, or choose another name"
                )
            if self._is_in_place():
                break
            # Another writer renamed it between open and lock, so it is no partial file any more.
            os.close(self.fd)
        if not keep:  # after the lock, because the file may have been another writer's
            os.ftruncate(self.fd, 0)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(self.partial))
        except FileNotFoundError:
            return False

    def publish(self) -> None:
        """Sync the file to the disk, rename it to its final name and close it."""
        os.fsync(self.fd)  # first: after a loss of power, the new name could be there without the bytes
        os.replace(self.partial, self.path)
        self.close()  # last, because it ends the lock

    def discard(self) -> None:
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self.partial)  # before the lock ends: then the name may be another writer's
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def is_locked(partial: Path) -> bool:
    """Return whether another process holds the lock of this partial file."""
    with contextlib.suppress(OSError), open(partial, "rb") as file:
        return try_lock(file, shared=True) is False
    return False


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Call pwrite until all of `data` is written."""
    view = memoryview(data)
    while view:
        num_written = os.pwrite(fd, view, offset)
        view, offset = view[num_written:], offset + num_written


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: Path, data: bytes | memoryview, *, durable: bool = True) -> None:
    """Write a file so that at any moment it is absent, old or whole."""
    with atomic_file(path, durable=durable) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a file to write and read, which gets its name at the end of the block."""
    # A token, too, because threads write at once, and machines that share a disk have equal numbers.
    own = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{_shortened(path.name)}.{own}.tmp")
    try:
        with open(temporary, "x+b") as file:
            yield file
            if durable:  # before the rename, as in `PartialFile.publish`
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # an error of writing names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    if durable:  # the name, now that it is there
        sync_folder(path.parent)


def _shortened(name: str) -> str:
    """Return a name's part of its temporary name, which no other name shares."""
    if len(name) <= _NAME_LENGTH:
        return name
    digest = blake2b(os.fsencode(name), digest_size=8).hexdigest()
    return f"{name[: _NAME_LENGTH - len(digest)]}{digest}"


def remove_leftovers(folder: Path, *names: str, beginning: str | tuple[str, ...] = ()) -> None:
    """Remove the temporary files that killed processes left of files that nobody else writes now."""
    written = {_shortened(name) for name in names}
    for path in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and (match[1] in written or match[1].startswith(beginning)):
            path.unlink(missing_ok=True)
