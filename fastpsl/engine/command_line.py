"""Parsing of command lines by tyro, with its boxed error messages turned into one line."""

import contextlib
import io
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from fastpsl.engine.terminal import plain

_FRAME = "│|+╭╮╰╯─- "
_OF_OPTIONS = "Error parsing Options: "


def parse(kind: Any, arguments: Sequence[str] | None = None, **settings: Any) -> Any:
    """Return `tyro.cli(kind, args=arguments, **settings)`; without arguments, for those of the process.

    Raises:
        ValueError: The arguments cannot be parsed. The message is one line.
        SystemExit: With code 0, after --help is printed.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box), contextlib.redirect_stdout(plain(sys.stdout)):
            return tyro.cli(kind, args=arguments, **settings)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise ValueError(one_line(box.getvalue())) from None


def one_line(box: str) -> str:
    """Return a boxed message's error and first suggestion as one line. The frame may be missing.

    The box is parsed because tyro 1.0 provides its suggestions nowhere else: the events of its experimental
    `_errors.on_parse_error` lack them.
    """
    # The first line is the title. A horizontal rule becomes an empty line.
    lines = [line.strip("│| ") if line.strip(_FRAME) else "" for line in box.splitlines()[1:]]
    while lines and not lines[0]:
        lines.pop(0)
    error = lines[: lines.index("")] if "" in lines else lines
    message = " ".join(" ".join(error).split())
    if message.startswith(_OF_OPTIONS):  # errors of our own __post_init__ already name the remedy
        return message.removeprefix(_OF_OPTIONS)
    if "Perhaps you meant:" in lines:
        suggestion = lines[lines.index("Perhaps you meant:") :][:2]
        message += f"; {' '.join(' '.join(suggestion).split())}"
    return f"{message}; see --help"
