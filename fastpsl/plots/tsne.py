"""The chart of a t-SNE map: one point per image, coloured by class."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.lines import Line2D

from fastpsl.plots.inline import InlineFigure
from fastpsl.plots.neighbours import class_name
from fastpsl.plots.png import write_png

MAX_NAMED = 40  # more classes are coloured, but have no legend
_LONG_IN, _SHORT_IN = 7.0, 3.5  # the map's longer side, and the least length of the shorter one
_NAME_WIDTH_IN, _NAME_HEIGHT_IN = 1.6, 0.2
_GREY = (0.75, 0.75, 0.75)


def draw_map(
    path: Path, points: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None, title: str
) -> Path:
    """Write the figure of `map_figure` to the file `path`."""
    return write_png(map_figure(points, labels, class_names, title), path)


def map_figure(
    points: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None, title: str
) -> InlineFigure:
    """Draw `points`, with a legend of up to MAX_NAMED classes.

    Args:
        points: float [N, 2].
        labels: int [N]; -1 means no label, and is drawn in grey.
        class_names: Names of the classes, or None.
        title: Title of the chart.
    """
    present = np.unique(labels[labels >= 0])
    colours = _colours(len(present))
    colour_of = {int(label): colour for label, colour in zip(present, colours, strict=True)}
    named = list(colour_of.items()) if len(present) <= MAX_NAMED else []
    entries = [(class_name(class_names, label), colour) for label, colour in named]
    if named and (labels < 0).any():
        entries.append(("no label", _GREY))
    extent = np.ptp(points, 0)
    width, height = np.maximum(_LONG_IN * extent / max(extent.max(), 1e-12), _SHORT_IN)
    num_columns = -(-len(entries) // int(height / _NAME_HEIGHT_IN))
    figure = InlineFigure(figsize=(width + num_columns * _NAME_WIDTH_IN, height + 0.4), layout="constrained")
    axis = figure.subplots()
    size = float(np.clip(16_000 / max(len(points), 1), 3, 30))
    # In the order of the rows, so that no class covers another.
    axis.scatter(
        points[:, 0], points[:, 1], s=size, c=[colour_of.get(int(label), _GREY) for label in labels],
        alpha=0.85, linewidths=0,
    )  # fmt: skip
    if entries:
        handles = [
            Line2D([], [], marker="o", linestyle="", color=colour, label=name) for name, colour in entries
        ]
        figure.legend(
            handles=handles, loc="outside right center", fontsize=9, ncols=num_columns, frameon=False
        )
    axis.set_aspect("equal", adjustable="datalim")
    axis.margins(0.04)
    axis.spines[:].set_color("0.75")
    axis.set_xticks([])  # the map's distances have no unit
    axis.set_yticks([])
    axis.set_title(title, fontsize=11)
    return figure


def _colours(num: int) -> list[tuple[float, float, float]]:
    """Return `num` RGB colours in [0, 1] that differ as much as possible."""
    for name, num_colours in (("tab10", 10), ("tab20", 20)):
        if num <= num_colours:
            return list(matplotlib.colormaps[name].colors[:num])  # type: ignore[attr-defined]
    shades = matplotlib.colormaps["turbo"](np.linspace(0.03, 0.97, num))
    return [(float(red), float(green), float(blue)) for red, green, blue, _ in shades]
