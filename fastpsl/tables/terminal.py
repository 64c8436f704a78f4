"""A table in the terminal: the paper's numbers, and ours below them."""

from collections.abc import Iterator, Sequence

from rich.table import Column
from rich.table import Table as Grid

from fastpsl.console.grid import GAP, console, needed, parts, show
from fastpsl.tables.page import NOTHING, Group, words_of
from fastpsl.tables.paper_file import NAMES, TABLES
from fastpsl.tables.report import Report

_METHOD_WIDTH = 28  # longer names are wrapped


def print_tables() -> None:
    """Print the names of all tables, with their titles."""
    grid = Grid.grid(padding=(0, 2, 0, 0))
    for name in NAMES:
        grid.add_row(name, TABLES[name].title)
    show(console(), grid)


def print_table(report: Report) -> None:
    """Print the table; beside each other as many columns as the terminal has room for."""
    terminal, words = console(), words_of(report)
    show(terminal, report.table.title)
    show(terminal, words["intro"])
    groups: list[Group] = words["rows"]
    is_ours = any(cell.ours for cells in report.cells.values() for cell in cells)
    names: Sequence[str] = words["head"] if is_ours else words["head"][:-1]  # the last says whose line it is
    rows = list[tuple[list[str], Sequence[str]]]()
    for group in groups:
        head = [group.name, *group.head]
        for whose, numbers in _shown(group):
            rows.append(([*head, whose][: len(names)], numbers))
            head = [""] * len(head)
    before = [[name, *(row[place] for row, _ in rows)] for place, name in enumerate(names)]
    room = terminal.width - sum(min(_METHOD_WIDTH + GAP, needed(cells)) for cells in before)
    columns = enumerate(report.table.columns)
    widths = [needed([name, *(numbers[place] for _, numbers in rows)]) for place, name in columns]
    for part in parts(room, widths):
        grid = Grid(
            *(Column(name, max_width=_METHOD_WIDTH) for name in names),
            *(Column(report.table.columns[place], justify="right", no_wrap=True) for place in part),
            box=None,
        )
        for head, numbers in rows:
            grid.add_row(*head, *(numbers[place] for place in part))
        show(terminal, "")
        show(terminal, grid)
    for note in ("", *report.table.notes, ""):
        show(terminal, note)


def _shown(group: Group) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield a row's lines, without those of which nothing is measured."""
    for whose, numbers in group.lines:
        if whose == "paper" or set(numbers) != {NOTHING} or len(group.lines) == 1:
            yield whose, numbers
