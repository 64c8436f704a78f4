"""`fastpsl runs` and `fastpsl compare`: what there is below a folder of runs, and runs beside each other."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from fastpsl.console.grid import GAP

if TYPE_CHECKING:
    from fastpsl.tables.comparison import Comparison
    from fastpsl.tables.runs import Run

# Pairs of columns: where the terminal is narrow, the second stands below the first.
_HEADS = (
    ("run", ""), ("state", "changed"), ("recipe", "network, plan"), ("data", "images"),
    ("kNN, %", "at epoch"), ("steps", "planned"), ("time", "images/s"),
)  # fmt: skip
_NUMBERS_FROM = 4  # these columns and those behind them are numbers
_WRAPPED = 2  # this column may be wrapped between words
_NAME = 16  # characters; longer names of runs may be folded
_WIDEST = 28  # characters of a run's column in a comparison; longer cells are wrapped


@dataclass(frozen=True)
class Runs:
    """List the runs below a folder, the newest first: state, data, best kNN accuracy, time and speed.

    A run is a folder with a config.json that a training wrote. `killed` has no process any more, `silent` has
    one that wrote nothing for half an hour. `damaged` has a file that is no record, `unreadable` one that the
    system could not read. The kNN accuracy is the best of the monitor's looks, beside that of the same block
    before the training. Time and images/s of a run at work are those of its last look or finished stage. See
    https://fastpsl.github.io/fastpsl/how_to/compare_runs.html.
    """

    folder: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FOLDER")]] = Path("runs")
    """The folder that your runs are written to; runs at any depth count."""
    json: bool = False
    """Print a list of JSON objects, for programs."""

    def run(self) -> None:
        """Print a row for each run."""
        from fastpsl.tables.runs import find_runs

        runs = find_runs(self.folder)
        if self.json:
            print(json.dumps([run.as_dict() for run in runs], indent=1))
            return
        print_runs(runs, self.folder)


@dataclass(frozen=True)
class Compare:
    """Put runs beside each other: kNN accuracy against time, images and energy, and how they differ.

    The tables stand in the terminal. DIR gets comparison.html, one page that needs no network, and
    comparison.png, the charts. See https://fastpsl.github.io/fastpsl/how_to/compare_runs.html.
    """

    runs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN...")]]
    """Folders of runs, quoted globs of them, or folders that hold several."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("comparison")
    """The folder to write to."""

    def run(self) -> None:
        """Print the tables, and write the page and the chart."""
        from fastpsl.files.paths import require_folder
        from fastpsl.tables.comparison import compare

        if not self.runs:
            raise ValueError("name the folder of a run or more, as in `fastpsl compare runs/a runs/b`")
        comparison = compare(self.runs)
        for run in comparison.runs:
            if self.out.resolve().is_relative_to(run.folder.resolve()):
                raise ValueError(f"--out {self.out}: it is in the folder of a run; give another")
        require_folder(self.out)
        print_comparison(comparison)
        for note in comparison.notes:
            print(note)
        from fastpsl.tables.comparison_page import write_page  # imports matplotlib

        print("\n".join(f"written: {path}" for path in write_page(comparison, self.out)))


def print_comparison(comparison: "Comparison") -> None:
    """Print the tables of a comparison; beside each other as many runs as the terminal has room for."""
    from rich.table import Column
    from rich.table import Table as Grid

    from fastpsl.console.grid import console, needed, parts, show

    terminal, names = console(), comparison.names
    tables = {"": comparison.figures} | comparison.differences
    lines = [line for table in tables.values() for line in table]
    titles = [*tables, *(line.title for line in lines)]
    cells = [[name, *(line.cells[place] for line in lines)] for place, name in enumerate(names)]
    widths = [min(_WIDEST + GAP, needed(each)) for each in cells]
    for part in parts(terminal.width - needed(titles), widths):
        grid = Grid(
            Column(width=needed(titles) - GAP),
            *(Column(names[place], max_width=_WIDEST, overflow="fold") for place in part),
            box=None, padding=(0, GAP, 0, 0), pad_edge=False,
        )  # fmt: skip
        for title, table in tables.items():
            if title:
                grid.add_row("")
                grid.add_row(title)
            for line in table:
                grid.add_row(line.title, *(line.cells[place] for place in part))
        show(terminal, grid)
        print()


def print_runs(runs: Sequence["Run"], folder: Path) -> None:
    """Print a line for each run, or two where the terminal is narrow, or one for each pair of figures."""
    from rich.table import Column
    from rich.table import Table as Grid

    from fastpsl.console.grid import console, needed, show

    terminal, now = console(), time.time()
    rows = [_HEADS, *(_cells(run, folder, now) for run in runs)]
    titled = [title != "" for pair in _HEADS for title in pair]
    single = [list(compress((text for pair in cells for text in pair), titled)) for cells in rows]
    stacked = [["\n".join(pair).rstrip() for pair in cells] for cells in rows]
    widths = [needed(cells) for cells in zip(*stacked, strict=True)]
    widths[0] = min(widths[0], _NAME + GAP)
    widths[_WRAPPED] = needed(word for cells in stacked for word in cells[_WRAPPED].split())
    if sum(map(needed, zip(*single, strict=True))) <= terminal.width:
        (heads, *lines), first = single, 2 * _NUMBERS_FROM - 1
    elif sum(widths) <= terminal.width:
        (heads, *lines), first = stacked, _NUMBERS_FROM
    else:  # a line for each pair, the titles on the left
        titles = [", ".join(filter(None, pair)) for pair in _HEADS]
        heads, first = ["", ""], len(titles)
        lines = [
            [title, ", ".join(filter(None, pair))]
            for cells in rows[1:]
            for title, pair in zip((*titles, ""), (*cells, ("", "")), strict=True)
        ]
    wrapped = (0, _WRAPPED) if len(heads) > 2 else (1,)
    grid = Grid(
        *(
            Column(head, justify="right" if place >= first else "left", no_wrap=place not in wrapped,
                   overflow="fold")
            for place, head in enumerate(heads)
        ),
        box=None, padding=(0, GAP, 0, 0), pad_edge=False, show_header=any(heads),
    )  # fmt: skip
    for cells in lines:
        grid.add_row(*cells)
    show(terminal, grid)
    for run in runs:
        if run.damage:
            print(f"{run.folder}: {run.damage}")


def _cells(run: "Run", folder: Path, now: float) -> list[tuple[str, str]]:
    """Return the words of a run, in the pairs of `_HEADS`."""
    from fastpsl.tables.comparison import NOTHING, accuracy_of, count, place_of, time_of

    options, best = run.options, run.best
    network = " ".join(str(options[name]) for name in ("backbone", "plan") if options.get(name))
    data = str(options.get("data") or "sample").rstrip("/").rpartition("/")[2] if options else NOTHING
    knn, place = NOTHING, ""
    if best is not None:
        knn, place = accuracy_of(best), place_of(best)
    elif run.top1 is not None:
        knn, place = f"{100 * run.top1:.1f}", "top-1"
    name = run.folder.resolve().name if run.folder == folder else str(run.folder.relative_to(folder))
    return [
        (name, ""),
        (run.state, age(now - run.changed)),
        (str(run.science.get("recipe") or NOTHING), network),
        (data, count(run.num_images) or NOTHING),
        (knn, place),
        (count(run.steps) or NOTHING, count(run.steps_planned) or NOTHING),
        (time_of(run.seconds) or NOTHING, count(run.images_per_s) or NOTHING),
    ]


def age(seconds: float) -> str:
    """Return how long ago something was, in the largest unit of which it is two or more, such as "3 h"."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return "now"
