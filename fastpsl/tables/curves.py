"""Draw a table as curves over its columns, in a panel for each row that improves another."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

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
