"""Make stdout and stderr safe: strangers' names cannot steer the terminal, and a lost reader ends no run."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

# C0, DEL and C1 (escape sequences begin with these), signs that turn the direction of writing, and separators
# of lines. Tab and newline stay.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def escaped(text: str) -> str:
    """Return `text` with control characters as in Python's strings (ESC becomes \\x1b); all others stay."""
    return _STEERING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def plain(stream: TextIO) -> TextIO:
    """Return the stream below `people_read`'s escapes, for what draws with escape sequences itself."""
    return cast(TextIO, getattr(stream, "plain", stream))


class _Lasting:
    """A stream that becomes /dev/null once it cannot be written: reader gone, disk full, or closed."""

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
            try:  # so that the stream's buffer goes there too
                with open(os.devnull, "w") as null:
                    os.dup2(null.fileno(), self._stream.fileno())
            except OSError:  # no file of the system's
                self._stream = open(os.devnull, "w")  # noqa: SIM115  (for good)
            self._lose(self._name, error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Escaping:
    """A stream that escapes what is written to `plain`."""

    def __init__(self, plain: _Lasting):
        self.plain = plain

    def write(self, text: str) -> int:
        self.plain.write(escaped(text))
        return len(text)

    def isatty(self) -> bool:
        """Return False, because who asks would write escape sequences; what may write them asks `plain`."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)


@contextlib.contextmanager
def people_read(lose: Callable[[str, OSError], None]) -> Iterator[None]:
    """Let sys.stdout and sys.stderr escape control characters and outlive their readers.

    Args:
        lose: Called with "stdout" or "stderr" and the error when one is lost, from the print that met it. It
            may raise.
    """
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
                stream.reconfigure(errors="backslashreplace")  # names of files may be any bytes
                with contextlib.suppress(OSError):  # no file of the system's
                    # Another program may have left the terminal non-blocking: it would refuse long output.
                    os.set_blocking(stream.fileno(), True)
            stack.enter_context(redirect(cast(TextIO, _Escaping(_Lasting(stream, name, lose)))))
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):  # from `lose`: reported before, or too late
                    stream.flush()


def _occupy_standard_descriptors() -> None:
    """Open /dev/null as each of 0, 1 and 2 that is closed, lest a file get the number and the printed
    lines."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)
