"""Charts of grouped horizontal bars: medians, with quartiles as whiskers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# In inches. The height of a panel grows with its lines.
_LINE, _NAMES, _WIDTH, _TEXTS, _BELOW = 0.22, 2.3, 4.8, 0.5, 0.8
_DPI = 110  # as a page shows it; a chart then is about as wide as a page's text
# Readable on top of a line across the bars.
_HEADING = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}


class Bar(NamedTuple):
    """One bar.

    Attributes:
        name: Label on the left.
        row: Mapping with median, quartile_1 and quartile_3.
        text: Label beyond the end of the bar.
        mark: Value at which a black line crosses the bar.
    """

    name: str
    row: Mapping[str, Any]
    colour: str
    text: str
    mark: float | None = None


class Panel(NamedTuple):
    """A panel of bars on one axis.

    Attributes:
        groups: Heading → the bars below it.
        line: Value at which a black line crosses all bars.
        edge: Value at which longer bars are cut off.
    """

    title: str
    axis: str
    groups: Mapping[str, Sequence[Bar]]
    line: float | None = None
    edge: float = math.inf
    is_log: bool = False


def grouped(pairs: Iterable[tuple[str, Bar]]) -> dict[str, list[Bar]]:
    """Group bars by heading, in the order of their first appearance."""
    groups: dict[str, list[Bar]] = {}
    for heading, bar in pairs:
        groups.setdefault(heading, []).append(bar)
    return groups


def draw(path: Path, panels: Sequence[Panel], title: str = "") -> Path:
    """Draw panels one below the other as a PNG for screens of twice the pixels, and return its path."""
    # max(1, ...), because a panel without bars still needs an axis.
    heights = [_LINE * max(1, sum(len(bars) + 1 for bars in panel.groups.values())) for panel in panels]
    width, height = _NAMES + _WIDTH + _TEXTS, sum(heights) + _BELOW * len(panels)
    figure = Figure(figsize=(width, height), dpi=2 * _DPI)
    top = height
    for panel, inches in zip(panels, heights, strict=True):
        top -= inches
        area = (_NAMES / width, top / height, _WIDTH / width, inches / height)
        _draw_panel(figure.add_axes(area), panel)
        top -= _BELOW
    figure.text(_NAMES / width, 1 + 0.38 / height, title, fontsize=10, va="bottom")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")
    return path


def _draw_panel(axes: Axes, panel: Panel) -> None:
    line, names = 0, dict[int, str]()
    for heading, bars in panel.groups.items():
        axes.annotate(
            heading, (0, line), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", fontsize=9, weight="bold", bbox=_HEADING, zorder=4,
        )  # fmt: skip
        for bar in bars:
            line += 1
            names[line] = bar.name
            _draw_bar(axes, line, bar, panel.edge)
        line += 1
    if panel.line is not None:
        axes.axvline(panel.line, color="black", linewidth=0.8, zorder=3)
    axes.set_title(panel.title, loc="left", fontsize=11)
    axes.set_yticks(list(names), list(names.values()), fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(line - 0.4, -0.6)
    axes.set_xlabel(panel.axis)
    axes.margins(x=0.2)
    if panel.is_log:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_bar(axes: Axes, line: int, bar: Bar, edge: float) -> None:
    median, low, high = (bar.row[name] for name in ("median", "quartile_1", "quartile_3"))
    is_cut, text = median > edge, bar.text
    if is_cut:
        median = high = edge
        text += " →"
    axes.barh(line, median, 0.85, color=bar.colour)
    if not is_cut:
        axes.errorbar(median, line, xerr=[[median - low], [high - median]], ecolor="#444", elinewidth=1)
    if bar.mark is not None:
        axes.plot([bar.mark] * 2, [line - 0.5, line + 0.5], color="black", linewidth=1)
    # The heading's box keeps the text readable over the whisker.
    axes.annotate(
        text, (max(high, bar.mark or high), line), (6, 0), textcoords="offset points", va="center",
        fontsize=7.5,
        bbox=_HEADING, zorder=4,
    )  # fmt: skip
