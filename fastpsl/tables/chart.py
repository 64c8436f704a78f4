"""Draw a table as one PNG.

Each column is a panel, with a line for each method that shows the paper's number and ours.
"""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fastpsl.plots.png import write_png
from fastpsl.tables.report import Report
from fastpsl.tables.rows import Row

_COLOURS = ("#6b7280", "#1d4ed8", "#c2410c")
_PAPER_COLOUR, _OUR_COLOUR = "#6b7280", "#c2410c"
_MOST_PANELS, _FEWER_PANELS = 6, 4  # up to six panels stand beside each other; of more, four do


def save_chart(report: Report, path: Path) -> None:
    """Write the table's curves, or else its panels, to `path` as a PNG."""
    write_png(curves(report) if report.table.curves else chart(report), path, dpi=150)


def curves(report: Report) -> Figure:
    """Draw a panel for each row that has a baseline: the row, its baseline, and the rows without gains.

    Dashed lines are the paper's numbers, dots with lines ours, whiskers our standard deviation over seeds.
    """
    table = report.table
    improved = [row for row in table.rows if row.baseline is not None]
    baselines = {row.baseline for row in improved}
    others = [row for row in table.rows if row.baseline is None and row.method not in baselines]
    figure = Figure(figsize=(3.2 * len(improved) + 0.6, 4.2), layout="constrained")
    axes = figure.subplots(1, len(improved), sharey=True, squeeze=False)
    for axis, row in zip(axes.flat, improved, strict=True):
        assert row.baseline
        for colour, curve in zip(_COLOURS, (*others, table.row(row.baseline), row), strict=True):
            _lines(axis, report, curve, colour)
        axis.set_title(row.method, fontsize=10)
        axis.legend(frameon=False, fontsize=8, loc="lower center")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    low, high = axes[0][0].get_ylim()
    axes[0][0].set_ylim(low - 0.25 * (high - low), high)  # room for the legends
    axes[0][0].set_ylabel(table.number)
    _legend(figure, report, {"linestyle": "--", "color": "black"}, {"marker": "o", "color": "black"})
    figure.suptitle(table.title, fontsize=11)
    return figure


def _lines(axis: Axes, report: Report, row: Row, colour: str) -> None:
    cells, places = report.cells[row.method], range(len(report.table.columns))
    axis.set_xticks(places, report.table.columns)
    paper = [float("nan") if cell.paper is None else cell.paper for cell in cells]
    axis.plot(places, paper, "--", color=colour, label=row.method)
    if points := [(x, cell.ours.mean, cell.ours.sd or 0) for x, cell in enumerate(cells) if cell.ours]:
        x, mean, sd = zip(*points, strict=True)
        axis.errorbar(x, mean, sd, fmt="o-", markersize=4, capsize=2, color=colour)


def chart(report: Report) -> Figure:
    """Draw a panel for each column: diamonds are the paper's numbers, dots ours, whiskers our deviation."""
    table, rows, columns = report.table, report.table.rows, report.table.columns
    across = len(columns) if len(columns) <= _MOST_PANELS else _FEWER_PANELS
    lines = -(-len(columns) // across)
    size = (max(7.5, 2.2 + 2.3 * across), 1.5 + lines * (0.4 + 0.42 * len(rows)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(lines, across, sharey=True, squeeze=False)
    for number, column in enumerate(columns):
        _panel(axes.flat[number], report, number)
        axes.flat[number].set_title(column)
    for axis in axes.flat[len(columns) :]:
        axis.set_visible(False)
    names = [f"{row.method}  {row.arch}" + ("" if row.measures else "  *") for row in rows]
    axes[0][0].set_yticks(range(len(rows)), names)
    axes[0][0].set_ylim(len(rows) - 0.4, -0.6)
    paper = {"marker": "D", "linestyle": "", "markerfacecolor": "white", "color": _PAPER_COLOUR}
    paper["label"] = "paper" if table.reads else f"paper, {table.images.name}"
    is_printed = any(row.printed for row in rows)
    ours = {"marker": "o", "linestyle": "", "color": _OUR_COLOUR}
    _legend(figure, report, paper if is_printed else None, ours)
    note = "" if all(row.measures for row in rows) else "; * the paper's alone"
    figure.suptitle(f"{table.title}\n{table.number}{note}", fontsize=11)
    return figure


def _panel(axis: Axes, report: Report, column: int) -> None:
    def write(number: float, x: float, y: float, colour: str) -> None:
        axis.annotate(
            f"{number:.1f}", (x, y), (6, 0), textcoords="offset points", va="center", fontsize=8, color=colour
        )

    for place, row in enumerate(report.table.rows):
        paper, ours = report.cells[row.method][column]
        if paper is not None:
            y = place - 0.12
            axis.plot(paper, y, "D", markersize=6, markerfacecolor="white", color=_PAPER_COLOUR)
            write(paper, paper, y, _PAPER_COLOUR)
        if ours:
            y = place + 0.2
            axis.errorbar(ours.mean, y, xerr=ours.sd, fmt="o", markersize=5, color=_OUR_COLOUR, capsize=2)
            write(ours.mean, ours.mean + (ours.sd or 0), y, _OUR_COLOUR)
    low, high = axis.get_xlim()
    axis.set_xlim(low, high + 0.22 * (high - low))  # room for the last words
    axis.grid(axis="y", alpha=0.25)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _legend(figure: Figure, report: Report, paper: dict[str, Any] | None, ours: dict[str, Any]) -> None:
    """Name the marks below the panels; without a mark of the paper it has no number in the table."""
    numbers = sorted({len(cell.ours.seeds) for row in report.cells.values() for cell in row if cell.ours})
    label = "ours: nothing measured yet"
    if numbers:
        seeds = " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))
        label = f"ours, {report.scale.name} scale, {seeds} {'seeds' if numbers[-1] > 1 else 'seed'}"
    marks = [{"label": "paper", **paper}] if paper else []
    handles = [Line2D([], [], **mark) for mark in (*marks, {**ours, "label": label})]
    figure.legend(handles=handles, loc="outside lower right", ncols=2, frameon=False)
