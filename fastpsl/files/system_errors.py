"""Errors of the system, such as a missing permission or too many open files.

They are never told as damage of a file, because whoever believes it removes what is sound.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_SPACE = "free some space or choose another disk"
_FILES = "raise the limit of open files (ulimit -n)"
_REMEDIES = {
    errno.EFBIG: "raise the limit of a file's size (ulimit -f) or choose another disk",
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENOMEM: "free some memory",
}
_INPUT_REMEDIES = {
    errno.EACCES: "make it readable for this user",
    errno.EPERM: "make it readable for this user",
    errno.ESTALE: "its server has replaced it: give the command once more",
    errno.ENOENT: "give a file that is there",
    errno.ENOTDIR: "give a file that is there",
    errno.EISDIR: "give a file",
    errno.ELOOP: "it is a link to itself: give a file",
    errno.ENXIO: "give a regular file",
    errno.ENAMETOOLONG: "give a shorter path",
}
# Errors of a path that names nothing, or no file, and of an offset that a damaged file states.
_OF_THE_PATH = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG, errno.EINVAL
)  # fmt: skip
# Errors that dlopen, torch and other libraries tell by their text alone, without a number.
_IN_WORDS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EIO, errno.ESTALE)


class UnreadableError(ValueError):
    """An error of the system in reading a file, whose contents may be sound."""


def _number(error: BaseException) -> int:
    """Return the system's number of an error, or 0; libraries raise an OSError without one for damage."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError | ImportError | RuntimeError):
        return next((number for number in _IN_WORDS if os.strerror(number) in str(error)), 0)
    return 0


def is_of_the_system(error: BaseException) -> bool:
    """Return whether an error tells of the system, and not of what a path names or a file holds.

    It tells of one file where a permission is missing: `dataset.is_of_one_file` asks for that.
    """
    number = _number(error)
    return number != 0 and number not in _OF_THE_PATH


def remedy(error: BaseException, otherwise: str, space: str = _SPACE) -> str:
    """Return the remedy for an error of the system; it is `space` where the disk is full."""
    number = _number(error)
    return space if number in (errno.ENOSPC, errno.EDQUOT) else _REMEDIES.get(number, otherwise)


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn errors of writing `path`, or a file in that folder, into a ValueError of one line."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and Path(error.filename).is_relative_to(path):
            path = Path(error.filename)
        advice = remedy(error, "choose a folder that can be written")
        raise ValueError(f"{path}: cannot be written ({error.strerror or error}); {advice}") from None


def input_error(path: object, error: BaseException) -> UnreadableError:
    """Return an error of reading `path`, or the file that the error names, as one line with a remedy."""
    number, named = _number(error), getattr(error, "filename", None)
    if isinstance(named, str):
        path = named
    reason = getattr(error, "strerror", None) or (os.strerror(number) if number else error)
    advice = _INPUT_REMEDIES.get(number, "look at the disk or the server that has it")
    return UnreadableError(f"{path}: cannot be read ({reason}); {remedy(error, advice)}")


@contextlib.contextmanager
def input_errors(path: object) -> Iterator[None]:
    """Turn errors of reading `path` into a ValueError of one line."""
    try:
        yield
    except OSError as error:
        raise input_error(path, error) from None


def raise_of_the_system(path: object, error: BaseException) -> None:
    """Raise `error` if it is one of the system, and return if it tells that the file at `path` is damaged.

    Handlers that report errors of any type as damage call this first.
    """
    if isinstance(error, UnreadableError):
        raise error
    if _number(error) == errno.ENOMEM:
        raise error if isinstance(error, MemoryError) else MemoryError(f"{path}: {error}") from None
    if is_of_the_system(error):
        raise input_error(path, error) from None
