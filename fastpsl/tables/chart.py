"""Draw a table as one PNG.

Each column is a panel, with a line for each method that shows the paper's number and ours.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fastpsl.plots.png import write_png
from fastpsl.tables.report import Report
from fastpsl.tables.rows import Row

_COLOURS = ("#6b7280", "#1d4ed8", "#c2410c")


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
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    low, high = axes[0][0].get_ylim()
    axes[0][0].set_ylim(low - 0.25 * (high - low), high)  # room for the legends
    axes[0][0].set_ylabel(table.number)
    seeds = sorted({len(cell.ours.seeds) for cells in report.cells.values() for cell in cells if cell.ours})
    label = (
        f"ours, {report.scale.name} scale, {'/'.join(map(str, seeds))} seeds"
        if seeds
        else "ours: nothing measured yet"
    )
    handles = [
        Line2D([], [], linestyle="--", color="black", label="paper"),
        Line2D([], [], linestyle="-", marker="o", color="black", label=label),
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=2, frameon=False)
    figure.suptitle(table.title, fontsize=11)
    return figure


def _lines(axis: Axes, report: Report, row: Row, colour: str) -> None:
    cells, places = report.cells[row.method], range(len(report.table.columns))
    axis.set_xticks(places, report.table.columns)
    paper = [float("nan") if cell.paper is None else cell.paper for cell in cells]
    axis.plot(places, paper, "--", color=colour, label=row.method)
    points = [(place, cell.ours) for place, cell in zip(places, cells, strict=True) if cell.ours]
    if points:
        axis.errorbar(
            [place for place, _ in points],
            [number.mean for _, number in points],
            yerr=[number.sd or 0 for _, number in points],
            fmt="o-",
            markersize=4,
            capsize=2,
            color=colour,
        )


# Up to six panels stand beside each other; of more, four do.
MOST_PANELS, FEWER_PANELS = 6, 4
PAPER_COLOUR, OUR_COLOUR = "#6b7280", "#c2410c"


def chart(report: Report) -> Figure:
    """Draw the panels.

    Open diamonds are the paper's numbers, dots ours, whiskers our standard deviation over the seeds.
    """
    rows, columns = report.table.rows, report.table.columns
    across = len(columns) if len(columns) <= MOST_PANELS else FEWER_PANELS
    lines = -(-len(columns) // across)
    size = (max(7.5, 2.2 + 2.3 * across), 1.5 + lines * (0.4 + 0.42 * len(rows)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(lines, across, sharey=True, squeeze=False)
    for number, column in enumerate(columns):
        axis = axes.flat[number]
        _panel(axis, report, number)
        axis.set_title(column)
    for axis in axes.flat[len(columns) :]:
        axis.set_visible(False)
    names = [f"{row.method}  {row.arch}" + ("" if row.measures else "  *") for row in rows]
    axes[0][0].set_yticks(range(len(rows)), names)
    axes[0][0].set_ylim(len(rows) - 0.4, -0.6)
    handles = [
        Line2D(
            [],
            [],
            marker="D",
            linestyle="",
            markerfacecolor="white",
            color=PAPER_COLOUR,
            label="paper" if report.table.reads else f"paper, {report.table.images.name}",
        ),
        Line2D([], [], marker="o", linestyle="", color=OUR_COLOUR, label=_our_label(report)),
    ]
    if not any(row.printed for row in rows):
        del handles[0]
    figure.legend(handles=handles, loc="outside lower right", ncols=2, frameon=False)
    note = "" if all(row.measures for row in rows) else "; * the paper's alone"
    figure.suptitle(f"{report.table.title}\n{report.table.number}{note}", fontsize=11)
    return figure


def _panel(axis: Axes, report: Report, column: int) -> None:
    for place, row in enumerate(report.table.rows):
        cell = report.cells[row.method][column]
        if cell.paper is not None:
            axis.plot(
                cell.paper, place - 0.12, "D", markersize=6, markerfacecolor="white", color=PAPER_COLOUR
            )
            _write(axis, f"{cell.paper:.1f}", cell.paper, place - 0.12, PAPER_COLOUR)
        if cell.ours:
            axis.errorbar(
                cell.ours.mean,
                place + 0.2,
                xerr=cell.ours.sd,
                fmt="o",
                markersize=5,
                color=OUR_COLOUR,
                capsize=2,
            )
            _write(
                axis, f"{cell.ours.mean:.1f}", cell.ours.mean + (cell.ours.sd or 0), place + 0.2, OUR_COLOUR
            )
    low, high = axis.get_xlim()
    axis.set_xlim(low, high + 0.22 * (high - low))  # room for the last words
    axis.grid(axis="y", alpha=0.25)
    axis.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _write(axis: Axes, words: str, x: float, y: float, colour: str) -> None:
    axis.annotate(words, (x, y), (6, 0), textcoords="offset points", va="center", fontsize=8, color=colour)


def _our_label(report: Report) -> str:
    numbers = {len(cell.ours.seeds) for cells in report.cells.values() for cell in cells if cell.ours}
    if not numbers:
        return "ours: nothing measured yet"
    seeds = f"{min(numbers)}" if len(numbers) == 1 else f"{min(numbers)} to {max(numbers)}"
    return f"ours, {report.scale.name} scale, {seeds} {'seeds' if max(numbers) > 1 else 'seed'}"


def save_chart(report: Report, path: Path) -> None:
    """Write the table's curves, or else its panels, to `path` as a PNG."""
    write_png(curves(report) if report.table.curves else chart(report), path, dpi=150)
