"""The frame of this folder's programs: their output path, progress and exit codes."""

import contextlib
import os
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from rich.console import Console

from fastpsl.scripts.command_line import parse

_Options = TypeVar("_Options")
_Thing = TypeVar("_Thing")
_EVERY_S = 10.0  # between two lines of progress without a terminal


def check_out(path: Path) -> None:
    """Raise ValueError if a result cannot be written to `path`, before anything is measured."""
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder; give it a file's name")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(bytes(1 << 20))  # fails on a full disk
    except OSError as error:
        # mkdir reports a parent that is a file as existing.
        reason = "not a folder" if isinstance(error, FileExistsError) else error.strerror
        raise ValueError(
            f"--out {path}: cannot be written ({reason}); choose a folder that can be written"
        ) from None


def options_of(kind: type[_Options], description: str | None) -> _Options:
    """Return the checked options of the command line; their result can be written."""
    options: Any = parse(kind, default=kind(), description=description or "")
    options.check()
    check_out(options.out)
    return options  # type: ignore[no-any-return]


def parser_of(description: str | None) -> ArgumentParser:
    """Return a parser whose help has this text as it is."""
    return ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)


def check_positive(options: object, *names: str) -> None:
    """Raise ValueError if one of these options is given and not above 0."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise ValueError(f"--{name.replace('_', '-')} {value}: it must be above 0")


def in_turn(
    things: Iterable[_Thing],
    repeats: int,
    log: Callable[[str], None],
    what: str = "",
    deadline: float = float("inf"),
) -> Iterator[_Thing]:
    """Yield all things so many times, every other time in reverse order; after the deadline once in all."""
    for repeat in range(repeats):
        if repeat and time.perf_counter() > deadline:
            return
        log(f"{what}repeat {repeat + 1} of {repeats}")
        yield from list(things)[:: -1 if repeat % 2 else 1]


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Yield a callback for the current phase, shown on stderr: by a spinner, or a line every 10 s at most."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if console.is_terminal:
        with console.status("") as status:
            yield status.update
        return
    started, last = time.monotonic(), float("-inf")

    def log(phase: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _EVERY_S:
            print(
                f"{Path(sys.argv[0]).stem}, after {now - started:.0f} s: {phase}", file=sys.stderr, flush=True
            )
            last = now

    yield log


def wide_console() -> Console:
    """Return a console for stdout of at least 100 columns; in a file 80 are too few for tables."""
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, 100)
    return console


def counted(num: int, noun: str) -> str:
    """Return a number with its noun, such as "1 rank" or "2 ranks"."""
    return f"{num:,} {noun}{'' if num == 1 else 's'}"


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` and exit with its code, 2 for ValueError and OSError, 130 for Ctrl-C and 143 for SIGTERM.

    All unwind the stack, so that temporary folders are removed and child processes end.
    """
    name, pid = Path(sys.argv[0]).stem, os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != pid:  # in a fork of this process
            os._exit(143)
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, end)
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)
