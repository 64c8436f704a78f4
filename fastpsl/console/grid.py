"""Tables in the terminal as plain text: which columns fit beside each other, and no spaces at lines' ends."""

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, RenderableType

from fastpsl.console.terminal import plain

GAP = 2  # columns of characters between two columns


def console() -> Console:
    """Return a console that writes no codes, and leaves lines whole that are not for a terminal."""
    width = shutil.get_terminal_size().columns if plain(sys.stdout).isatty() else 1000
    return Console(width=width, color_system=None, highlight=False, markup=False, emoji=False)


def show(console: Console, what: RenderableType) -> None:
    """Print without the spaces at the ends of lines."""
    with console.capture() as capture:
        console.print(what)
    print("\n".join(map(str.rstrip, capture.get().splitlines())))


def needed(cells: Iterable[str]) -> int:
    """Return the width of a column of these cells, with the gap beside it."""
    return max(cell_len(line) for cell in cells for line in (cell.splitlines() or [""])) + GAP


def parts(room: int, widths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the places of the columns of these widths that stand beside each other in `room` characters."""
    part, left = list[int](), room
    for place, width in enumerate(widths):
        if part and width > left:
            yield part
            part, left = [], room
        part.append(place)
        left -= width
    yield part
