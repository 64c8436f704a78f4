"""The picture of a map: a point an image, coloured by its class."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from fastpsl.evaluation.neighbour_sheet import class_name

matplotlib.use("Agg")
from matplotlib import pyplot  # after the choice of a backend that needs no screen

MAX_NAMED = 40  # classes beyond that many are coloured and not named
_GREY = (0.62, 0.62, 0.62)


def draw_map(
    path: Path, points: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None, title: str
) -> Path:
    """A PNG of `points` (float [n, 2]); labels: int [n], -1 (grey) = none. A legend names up to MAX_NAMED classes."""
    present = np.unique(labels[labels >= 0])
    colours = _colours(len(present))
    figure, axis = pyplot.subplots(figsize=(8.5, 7), layout="constrained")
    size = float(np.clip(24_000 / max(len(points), 1), 3, 40))
    # In the order of the rows, so that no class lies above another.
    colour_of = {int(label): colour for label, colour in zip(present, colours, strict=True)}
    axis.scatter(
        points[:, 0], points[:, 1], s=size, c=[colour_of.get(int(label), _GREY) for label in labels],
        alpha=0.85, linewidths=0,
    )  # fmt: skip
    named = present if len(present) <= MAX_NAMED else present[:0]
    entries = [(class_name(class_names, int(label)), colour_of[int(label)]) for label in named]
    if len(named) and (labels < 0).any():
        entries.append(("no label", _GREY))
    if entries:
        handles = [
            pyplot.Line2D([], [], marker="o", linestyle="", color=colour, label=name)
            for name, colour in entries
        ]
        figure.legend(
            handles=handles,
            loc="outside right center",
            fontsize=9,
            ncols=1 + (len(entries) > 25),
            frameon=False,
        )
    axis.set_aspect("equal", adjustable="datalim")
    axis.set_xticks([])  # the map's distances have no unit
    axis.set_yticks([])
    axis.set_title(title, fontsize=11)
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)
    return path


def _colours(num: int) -> list[tuple[float, ...]]:
    """So many colours as unlike as can be."""
    for name, most in (("tab10", 10), ("tab20", 20)):
        if num <= most:
            return list(matplotlib.colormaps[name].colors[:num])  # type: ignore[attr-defined]
    return [tuple(colour[:3]) for colour in matplotlib.colormaps["turbo"](np.linspace(0.03, 0.97, num))]
