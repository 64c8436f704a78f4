"""The process and its terminal: exit codes, rank, safe output, and the limit on its addresses."""

import contextlib
import io
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, cast

EXIT_FINISHED = 0
EXIT_CRASHED = 1
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: the same command goes on
EXIT_INTERRUPTED = 130
# The message where a script is interrupted before its run has a checkpoint.
INTERRUPTED = "interrupted; the same command begins again, or goes on with what was saved"


def number_in(variable: str, otherwise: int) -> int:
    """Return the number in a variable of the environment, which is as unset if it is empty."""
    return int(os.environ.get(variable) or otherwise)


def own_rank() -> int:
    """Return this process's rank from torchrun's environment, or 0 without it."""
    return number_in("RANK", 0)


# C0, DEL and C1, with which escape sequences begin, characters that change the direction of writing, line
# separators, and bytes of file names that are no UTF-8. Tab and newline are allowed.
_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escaped(text: str) -> str:
    r"""Escape the control characters of `text` as in Python's strings (ESC becomes \\x1b)."""
    return _STEERING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def plain(stream: TextIO) -> TextIO:
    """Return the stream below `safe_output`'s escapes, for code that writes escape sequences itself."""
    return cast(TextIO, getattr(stream, "plain", stream))


def same_place(one: TextIO, other: TextIO) -> bool:
    """Return whether two streams lead to the same terminal, pipe or file, so that a reader sees both."""
    try:
        return os.path.sameopenfile(one.fileno(), other.fileno())
    except (OSError, ValueError):  # a stream without a descriptor
        return False


class _Lasting:
    """A stream that becomes /dev/null when writing fails: reader gone, disk full, or closed."""

    def __init__(self, stream: TextIO, name: str, lose: Callable[[str, OSError], None]):
        self._stream, self._name, self._lose = stream, name, lose

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except OSError as error:
            try:  # replace the descriptor, so that the stream's buffer is discarded too
                with open(os.devnull, "w") as null:
                    os.dup2(null.fileno(), self._stream.fileno())
            except OSError:  # the stream has no descriptor
                self._stream = open(os.devnull, "w")  # noqa: SIM115  (never closed)
            self._lose(self._name, error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Escaping:
    """A stream that escapes the text and writes it to `plain`."""

    def __init__(self, plain: _Lasting):
        self.plain = plain

    def write(self, text: str) -> int:
        self.plain.write(escaped(text))
        return len(text)

    def isatty(self) -> bool:
        """Return False, so that callers write no escape sequences. Code that may write them uses `plain`."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)


@contextlib.contextmanager
def safe_output(lose: Callable[[str, OSError], None]) -> Iterator[None]:
    """Make sys.stdout and sys.stderr escape control characters and outlive their readers."""
    _occupy_standard_descriptors()
    with contextlib.ExitStack() as stack:
        for name, redirect in (
            ("stdout", contextlib.redirect_stdout),
            ("stderr", contextlib.redirect_stderr),
        ):
            stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115  (None: closed at the start)
            if isinstance(stream, _Escaping):
                continue
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # file names may hold any bytes
                with contextlib.suppress(OSError):  # the stream has no descriptor
                    # Another program may have left the terminal non-blocking, where long output fails.
                    os.set_blocking(stream.fileno(), True)
            stack.enter_context(redirect(cast(TextIO, _Escaping(_Lasting(stream, name, lose)))))
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):  # `lose` has reported it, or it is too late
                    stream.flush()


def _occupy_standard_descriptors() -> None:
    """Open /dev/null for each closed descriptor of 0, 1 and 2, so that no file gets the printed lines."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)


_NEEDED = 1 << 30  # bytes for numba, scipy's OpenBLAS and the decoders, which are loaded after the start
_NEEDED_BY_TORCH = 5 << 30  # bytes to load it and to train a little, with two cores and no GPU
_REMEDY = "raise it, or give `ulimit -v unlimited`"


def warn_about_low_limit() -> None:
    """Print a line to stderr, on rank 0, if torch will hardly load, because its own error names no limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or limit >= _NEEDED_BY_TORCH or "torch" in sys.modules:
        return
    if own_rank() == 0 and sys.stderr is not None:
        print(
            f"fastpsl: memory is limited to {limit / 1e9:.1f} GB of addresses (`ulimit -v`), and torch takes "
            f"{_NEEDED_BY_TORCH / 1e9:.0f} GB, with CUDA far more: {_REMEDY}",
            file=sys.stderr,
        )


def require_address_space() -> None:
    """Check that there are enough addresses for the libraries that a command loads after its start."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    left = limit - num_pages * resource.getpagesize()
    if left < _NEEDED:
        raise ValueError(
            f"memory is limited to {limit / 1e9:.1f} GB of addresses (`ulimit -v`), of which "
            f"{max(left, 0) / 1e9:.1f} GB are left, and at least {_NEEDED / 1e9:.1f} GB are needed: "
            f"{_REMEDY}"
        )
