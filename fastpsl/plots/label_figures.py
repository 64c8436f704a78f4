"""Charts of the pseudo-labels' figures over the epochs of a run."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastpsl.plots.png import write_png

_MANY_POINTS = 40  # longer curves have no markers


def draw_label_figures(
    rows: Sequence[Mapping[str, Any]], path: Path, title: str, min_entropy_share: float
) -> Path:
    """Draw five panels of figures over the epochs; a figure that is None leaves a gap.

    Args:
        rows: One mapping per epoch, at least one, with epoch, non_empty, entropy_share, biggest (in [0, 1]),
            nmi_previous, nmi_true and nmi_true_shuffled.
        path: File to write.
        title: Title of the chart.
        min_entropy_share: Entropy share below which labels have collapsed, drawn as a dotted line.
    """
    figure = Figure(figsize=(8, 10.5), layout="constrained")
    axes = figure.subplots(5, 1, sharex=True)
    _draw(axes[0], rows, "non_empty")
    _draw(axes[1], rows, "entropy_share")
    _draw(axes[2], rows, "biggest", 100)
    _draw(axes[3], rows, "nmi_previous")
    _draw(axes[4], rows, "nmi_true", label="as they are")
    _draw(axes[4], rows, "nmi_true_shuffled", label="shuffled", color="C1")
    titles = (
        "non-empty classes",
        "entropy share",
        "biggest class, % of images",
        "NMI with the epoch before",
        "NMI with true labels",
    )
    for axis, panel_title in zip(axes, titles, strict=True):
        axis.set_title(panel_title, fontsize=10, loc="left")
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
    axes[1].axhline(min_entropy_share, color="grey", linestyle=":", label="below: collapse")
    axes[2].set_yscale("log")
    shares = [100 * row["biggest"] for row in rows]
    axes[2].set_ylim(
        10 ** math.floor(math.log10(min(shares))), 10 ** math.ceil(math.log10(max(shares))) * 1.1
    )
    axes[2].yaxis.set_major_formatter("{x:g}")
    axes[2].yaxis.set_minor_formatter("")
    for axis in (axes[1], axes[3]):
        axis.set_ylim(0, 1.05)
    for axis in (axes[1], axes[4]):
        axis.legend(fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    axes[4].set_xlabel("epoch")
    axes[4].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    figure.suptitle(title)
    return write_png(figure, path)


def _draw(axis: Axes, rows: Sequence[Mapping[str, Any]], name: str, scale: float = 1, **options: Any) -> None:
    values = [math.nan if row.get(name) is None else scale * row[name] for row in rows]
    marker = "o" if len(rows) <= _MANY_POINTS else None
    axis.plot([row["epoch"] for row in rows], values, marker=marker, markersize=4, clip_on=False, **options)
