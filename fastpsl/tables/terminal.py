"""A table in the terminal: the paper's numbers, and ours below them."""

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, RenderableType
from rich.table import Column
from rich.table import Table as Grid

from fastpsl.console.terminal import plain
from fastpsl.tables.page import NOTHING, Group, words_of
from fastpsl.tables.paper_file import NAMES, TABLES
from fastpsl.tables.report import Report

_METHOD_WIDTH = 28  # longer names are wrapped


def print_tables() -> None:
    """Print the names of all tables, with their titles."""
    grid = Grid.grid(padding=(0, 2, 0, 0))
    for name in NAMES:
        grid.add_row(name, TABLES[name].title)
    _print(_console(), grid)


def print_table(report: Report) -> None:
    """Print the table; beside each other as many columns as the terminal has room for."""
    console, words = _console(), words_of(report)
    _print(console, report.table.title)
    _print(console, words["intro"])
    groups: list[Group] = words["rows"]
    is_ours = any(cell.ours for cells in report.cells.values() for cell in cells)
    names: Sequence[str] = words["head"] if is_ours else words["head"][:-1]  # the last says whose line it is
    rows = list[tuple[list[str], Sequence[str]]]()
    for group in groups:
        before = [group.name, *group.head]
        for whose, numbers in _shown(group):
            rows.append(([*before, whose][: len(names)], numbers))
            before = [""] * len(before)
    for part in _parts(console.width, names, report.table.columns, rows):
        grid = Grid(
            *(Column(name, max_width=_METHOD_WIDTH) for name in names),
            *(Column(report.table.columns[place], justify="right", no_wrap=True) for place in part),
            box=None,
        )
        for before, numbers in rows:
            grid.add_row(*before, *(numbers[place] for place in part))
        _print(console, "")
        _print(console, grid)
    for note in ("", *report.table.notes, ""):
        _print(console, note)


def _console() -> Console:
    """Return a console that writes no codes, and leaves lines whole that are not for a terminal."""
    width = shutil.get_terminal_size().columns if plain(sys.stdout).isatty() else 1000
    return Console(width=width, color_system=None, highlight=False, markup=False, emoji=False)


def _print(console: Console, what: RenderableType) -> None:
    """Print without the spaces at the ends of lines."""
    with console.capture() as capture:
        console.print(what)
    print("\n".join(map(str.rstrip, capture.get().splitlines())))


def _shown(group: Group) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield a row's lines, without those of which nothing is measured."""
    for whose, numbers in group.lines:
        if whose == "paper" or set(numbers) != {NOTHING} or len(group.lines) == 1:
            yield whose, numbers


def _parts(
    width: int, names: Sequence[str], columns: Sequence[str], rows: Sequence[tuple[list[str], Sequence[str]]]
) -> Iterator[list[int]]:
    """Yield the places of the columns of numbers that stand beside each other."""

    def needed(cells: Iterable[str]) -> int:
        return max(map(len, cells)) + 2

    before = [[name, *(row[place] for row, _ in rows)] for place, name in enumerate(names)]
    room = width - sum(min(_METHOD_WIDTH + 2, needed(cells)) for cells in before)
    part, taken = list[int](), 0
    for place, name in enumerate(columns):
        more = needed([name, *(numbers[place] for _, numbers in rows)])
        if part and taken + more > room:
            yield part
            part, taken = [], 0
        part, taken = [*part, place], taken + more
    yield part
