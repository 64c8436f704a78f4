"""Errors of the system, such as a missing permission or too many open files.

They are never told as damage of a file, because whoever believes it removes what is sound.
"""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

_SPACE = "free some space or choose another disk"
_FILES = "raise the limit of open files (ulimit -n)"
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "raise the limit of a file's size (ulimit -f) or choose another disk",
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENOMEM: "free some memory",
}
_INPUT_REMEDIES = {
    errno.EACCES: "make it readable for this user",
    errno.EPERM: "make it readable for this user",
    errno.ESTALE: "its server has replaced it: give the command again",
    errno.ENOENT: "give a file that is there",
    errno.ENOTDIR: "give a file that is there",
    errno.EISDIR: "give a file",
    errno.ELOOP: "it is a link to itself: give a file",
    errno.ENXIO: "give a regular file",
    errno.ENAMETOOLONG: "give a shorter path",
}
# What is said of a path: nothing is there, or something else than a file.
_OF_THE_PATH = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG
)  # fmt: skip


def is_of_the_system(error: BaseException) -> bool:
    """Return whether an error tells of the system, and not of what a path names or a file holds.

    Libraries raise an OSError without a number for damage.
    """
    if isinstance(error, OSError):
        return error.errno is not None and error.errno not in _OF_THE_PATH
    return isinstance(error, MemoryError)


def remedy(error: OSError, otherwise: str) -> str:
    """Return what helps against an error of the system."""
    return _REMEDIES.get(error.errno or 0, otherwise)


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


def input_error(path: object, error: OSError) -> ValueError:
    """Return an error of reading `path` as one line with a remedy."""
    advice = remedy(
        error, _INPUT_REMEDIES.get(error.errno or 0, "look at the disk or the server that has it")
    )
    return ValueError(f"{path}: cannot be read ({error.strerror or error}); {advice}")


@contextlib.contextmanager
def input_errors(path: object) -> Iterator[None]:
    """Turn errors of reading `path` into a ValueError of one line.

    What tells damage stands within this block, and catches no error that `is_of_the_system`.
    """
    try:
        yield
    except OSError as error:
        raise input_error(path, error) from None
