"""Lines that fit the width of a display: no number and no name is cut, what does not fit is left out."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.highlighter import RegexHighlighter
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

GAP = "  "
_MIN_BAR, _GOOD_BAR, _MAX_BAR = 6, 20, 40


class Part(NamedTuple):
    """A part of a line.

    Attributes:
        importance: A smaller number is more important.
        short: The text where the line is narrow.
        long: The text where there is room.
    """

    importance: int
    short: str
    long: str


def fitted(parts: Sequence[Part], width: int, long_width: int | None = None) -> list[str]:
    """Return the texts of the parts that fit `width` columns with gaps between them, in the given order.

    Parts are added by importance in their short text, until one does not fit. Then they take their long text
    by importance, each where that fits `long_width` (by default `width`).
    """
    ranked = sorted(range(len(parts)), key=lambda i: parts[i].importance)
    texts: dict[int, str] = {}
    for i in ranked:
        if _length([*texts.values(), parts[i].short]) > width:
            break
        texts[i] = parts[i].short
    for i in ranked[: len(texts)]:
        if _length([*(texts | {i: parts[i].long}).values()]) <= (width if long_width is None else long_width):
            texts[i] = parts[i].long
    return [texts[i] for i in sorted(texts)]


def text_line(texts: Sequence[str]) -> Text:
    """Return texts as a line with bright numbers."""
    return _Digits()(Text(GAP.join(texts), no_wrap=True, overflow="crop"))


def bar_line(done: int, total: int, parts: Sequence[Part], width: int) -> Table:
    """Return a bar of `done` of `total` and the parts that fit beside it.

    The bar has 6 to 40 columns. It has 20 before the parts take their long text.
    """
    room = width - len(GAP)
    text = text_line(fitted(parts, room - _MIN_BAR, room - _GOOD_BAR))
    # The terminal's own colours can be seen on white and on black.
    bar = ProgressBar(
        total,
        done,
        width=min(_MAX_BAR, room - len(text)),
        style="bright_black",
        complete_style="cyan",
        finished_style="green",
    )
    line = Table.grid(padding=(0, len(GAP), 0, 0), pad_edge=False)
    line.add_row(bar, text)
    return line


def _length(texts: Sequence[str]) -> int:
    return len(GAP.join(texts))


class _Digits(RegexHighlighter):
    """A highlighter of numbers, with their separators and exponents."""

    base_style = "repr."
    highlights = (r"(?<![\w.])(?P<number>\d[\d.,:/]*(e[+-]\d+)?)",)
