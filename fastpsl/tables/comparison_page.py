"""The page and the chart of a comparison of runs: `fastpsl compare`.

The HTML is one file without network and scripts, as light or dark as the system.
"""

from pathlib import Path

from fastpsl.files.atomic import write_atomically
from fastpsl.files.system_errors import output_errors
from fastpsl.plots.charts import monitor_figure, run_style
from fastpsl.plots.png import inline_svg, write_png
from fastpsl.tables.comparison import AXES, Comparison
from fastpsl.tables.templates import templates

NAME = "comparison"
_TEMPLATES = templates(Path(__file__).parent)


def write_page(comparison: Comparison, out: Path) -> list[Path]:
    """Write OUT/comparison.html, and comparison.png if any run has a curve; return their paths."""
    page, chart = (out / f"{NAME}.{suffix}" for suffix in ("html", "png"))
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(page, html(comparison).encode())
        panels = comparison.panels
        return [page, *([write_png(monitor_figure(panels), chart)] if panels else [])]


def html(comparison: Comparison) -> str:
    """Return the page: the charts, the figures of the runs, and how their options differ."""
    charts = []
    for axis, curves in comparison.panels.items():
        figure = monitor_figure({axis: curves}, has_legend=False)
        words = f"kNN accuracy of the runs against {AXES[axis]}"
        charts.append(inline_svg(figure, axis, words))
    runs = enumerate(zip(comparison.names, comparison.runs, strict=True))
    drawn = [(name, run_style(number)) for number, (name, run) in runs if run.looks]
    return _TEMPLATES.get_template("comparison.html.jinja").render(
        charts=charts, drawn=drawn, comparison=comparison,
        tables={"Figures": comparison.figures} | comparison.differences,
    )  # fmt: skip
