"""Command lines by tyro, whose boxed messages become one line."""

import contextlib
import io
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from fastpsl.engine.terminal import plain

_FRAME = "│|+╭╮╰╯─- "


def parse(kind: Any, arguments: Sequence[str] | None = None, **settings: Any) -> Any:
    """`tyro.cli(kind, args=arguments, **settings)`; ValueError with one line for what it cannot parse.

    --help is printed and leaves by SystemExit(0), as ever.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(plain(sys.stdout)):
            return tyro.cli(kind, args=arguments, **settings)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise ValueError(one_line(said.getvalue())) from None


def one_line(box: str) -> str:
    """What is wrong, and the option that may have been meant, of a message in a box; its frame may be missing."""
    lines = [
        line.strip("│| ") if line.strip(_FRAME) else "" for line in box.splitlines()[1:]
    ]  # below the title
    while lines and not lines[0]:
        lines.pop(0)
    told = lines[: lines.index("")] if "" in lines else lines
    if told and told[0].startswith(
        "Error parsing Options: "
    ):  # a value of ours, whose message says what to do
        return " ".join(" ".join(told).split()).removeprefix("Error parsing Options: ")
    if "Perhaps you meant:" in lines:
        told = [*told, ";", *lines[lines.index("Perhaps you meant:") :][:2]]
    return " ".join(" ".join([*told, "; see --help"]).split()).replace(" ;", ";")
