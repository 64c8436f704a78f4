"""Texts of others in Markdown: names and commands that may hold any character."""

import re
from collections.abc import Iterable

# Letters with a meaning within a line: those of code, emphasis, links, HTML, entities and formulas. GitHub
# makes links of addresses, too. An underscore between letters has none.
_MARKS = re.compile(r"[\\`*\[\]<>&~$@]|(?<![^\W_])_|_(?![^\W_])|(?<=\w):(?=//)|(?<=www)\.", re.IGNORECASE)
BAR = r"\|"  # of a cell, not of the table
_BACKTICKS = re.compile("`+")


def plain(text: str) -> str:
    """Return a text for the middle of a line, with a backslash before each mark."""
    return _MARKS.sub(lambda match: f"\\{match[0]}", _printable(text))


def code(text: str) -> str:
    """Return a text as code within a line."""
    text = _printable(text) or " "
    marks = "`" * (_longest_run(text) + 1)
    # Readers take a space from both ends.
    return f"{marks} {text} {marks}" if "`" in text or text.strip() != text else f"{marks}{text}{marks}"


def block(text: str, language: str = "") -> str:
    """Return lines of text as a block of code."""
    marks = "`" * max(3, _longest_run(text) + 1)
    lines = "\n".join(map(_printable, text.split("\n")))
    return f"{marks}{language}\n{lines}\n{marks}"


def table_row(cells: Iterable[str]) -> str:
    """Return a row of a table. Its cells are Markdown, in which any bar is meant."""
    return f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"


def _printable(text: str) -> str:
    """Return a text of one line, in which characters that cannot be seen are spaces."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _longest_run(text: str) -> int:
    return max((len(run) for run in _BACKTICKS.findall(text)), default=0)
