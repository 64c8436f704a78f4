"""Charts of results: grouped horizontal bars of medians, with quartiles as whiskers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.peers import TITLES
from bench.program import counted
from bench.schema import save_result
from bench.tables import HAVE_CHARTS, PATHS, launch, show

Row = Mapping[str, Any]
# In inches. The height of a panel grows with its lines.
_LINE, _NAMES, _WIDTH, _TEXTS, _BELOW = 0.22, 2.3, 4.8, 0.5, 0.8
_DPI = 110  # as a page shows it; a chart then is about as wide as a page's text
# Readable on top of a line across the bars.
_HEADING = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
# Okabe and Ito's colours, which colour-blind readers can tell apart: ours dark, peers light; the same name
# has the same colour in both panels.
COLOURS = {
    "step": "#777777", "turbo": "#0072B2", "ffcv": "#332288", "dali": "#009E73", "resident": "#000000",
    "pillow": "#D55E00", "torchvision": "#D55E00",  # its former name
    "synthetic": "#999999", "ffcv_loader": "#7FB8D8", "dali_reader": "#7FCEB8", "dataloader": "#EAAE7F",
    "webdataset": "#F0E442", "spdl_cv2": "#CC79A7", "spdl_ffmpeg": "#E0B0CB",
}  # fmt: skip
_OTHER = "#56B4E9"
PATH_COLOURS = {
    "fused": "#0072B2", "kornia": "#009E73", "kornia_modules": "#7FCEB8", "torchvision_batch": "#EAAE7F",
    "torchvision_images": "#F0E442",
}  # fmt: skip
_CUT = 1.5  # times the longest bar of real data, because a synthetic loader is far faster than any other
_LOWER = "both / min(loader, step)"


class Bar(NamedTuple):
    """One bar."""

    heading: str  # heading of its group
    name: str  # label on the left
    row: Row  # mapping with median, quartile_1 and quartile_3
    colour: str
    text: str  # label beyond the end of the bar
    mark: float | None = None  # value at which a black line crosses the bar


class Panel(NamedTuple):
    """A panel of bars on one axis."""

    title: str
    axis: str
    bars: Sequence[Bar]
    edge: float = math.inf  # value at which longer bars are cut off
    is_log: bool = False

    def groups(self) -> dict[str, list[Bar]]:
        """Return the bars by heading, in the order of their first appearance."""
        groups: dict[str, list[Bar]] = {}
        for bar in self.bars:
            groups.setdefault(bar.heading, []).append(bar)
        return groups


def draw(result: Mapping[str, Any], path: Path) -> Path:
    """Draw the bars of a result of bench/throughput.py or kernels.py as a PNG."""
    title, panels = (_throughput if result["bench"] == "throughput" else _kernels)(result)
    return draw_panels(path, panels, title)


def _machine(result: Mapping[str, Any]) -> str:
    machine = result["environment"]
    load = f"load average {machine['load_average_before']} before"
    return f"{machine['gpu'] or machine['cpu']}, {machine['num_cores']} cores, {load}"


def _throughput(result: Mapping[str, Any]) -> tuple[str, list[Panel]]:
    """Show loaders, beside them steps and training, each of the latter with its ratio to the slower part."""
    settings = result["settings"]
    ratios = {_key(row): row["median"] for row in result["ratios"] if row["what"] == _LOWER}
    places = [*COLOURS]
    panels = []
    for title, *measured in (
        ("loader alone", "loader", "peer"),
        ("step alone, and trained (× the slower of loader and step)", "step", "both"),
    ):
        rows = [row for row in result["rows"] if row["measured"] in measured]
        longest = max((row["quartile_3"] for row in rows if row["decoder"] != "synthetic"), default=math.inf)
        headings = [*dict.fromkeys(map(_heading, rows))]
        # A decoder without a colour of its own comes last.
        rows.sort(key=lambda row: (headings.index(_heading(row)), [*places, _name(row)].index(_name(row))))
        bars = []
        for row in rows:
            text = f"{row['median']:,.0f}" if row["median"] >= 100 else f"{row['median']:.1f}"
            text += f"  (×{ratios[_key(row)]:.2f})" if row["measured"] == "both" else ""
            bars.append(Bar(_heading(row), _title(row), row, COLOURS.get(_name(row), _OTHER), text))
        panels.append(Panel(title, "samples/s (median, quartiles)", bars, edge=_CUT * longest))
    backbone = settings["backbone"] or "the recipes' backbones"
    about = f"{backbone}, precision {settings['precision']}"
    return f"{about}, batch {settings['batch_size']}, {result['data']['name']}\n{_machine(result)}", panels


def _heading(row: Row) -> str:
    """Return the heading of the bars that can be compared."""
    views = counted(row["num_views"], "view")
    if row["stage"] is None:
        return f"{views}, random resized crops"
    return f"{row.get('recipe', 'jigsaw')} {row['stage']}, {views}"


def _key(row: Row) -> tuple[Any, ...]:
    return row.get("recipe"), row["decoder"], row["num_views"], row["stage"]


def _name(row: Row) -> str:
    return "step" if row["measured"] == "step" else str(row["decoder"])


def _title(row: Row) -> str:
    if row["measured"] == "step":
        return f"step alone ({launch(row)})"
    if row["measured"] == "both":
        return f"trained, {row['decoder']}"
    return TITLES.get(row["decoder"], f"fastpsl, {row['decoder']}")


def _kernels(result: Mapping[str, Any]) -> tuple[str, list[Panel]]:
    """Show the milliseconds of each chain by path; a line in each bar is the time of a copy of the bytes."""
    settings = result["settings"]
    (copy,) = (row for row in result["rows"] if row["measured"] == "copy")
    bars = []
    for row in result["rows"]:
        if row["measured"] == "kernel":
            text = f"{_digits(row['median'], 3)} ms, {_digits(row['percent_of_copy'], 2)} % of a copy"
            floor_ms = 1e-6 * row["num_bytes"] / copy["gb_per_s"]
            path = row["path"]
            bars.append(Bar(row["chain"], PATHS[path], row, PATH_COLOURS[path], text, floor_ms))
    title = (
        f"{settings['batch_size']} samples of {settings['size_px']} px to {settings['precision']}; "
        f"copy {copy['gb_per_s']:,.0f} GB/s\n{_machine(result)}"
    )
    axis = "ms per batch (median, quartiles; logarithmic)"
    return title, [Panel("black line: at the speed of a copy", axis, bars, is_log=True)]


def _digits(value: float, num: int) -> str:
    """Format a number with `num` significant digits, or as a whole number if it has more."""
    return f"{value:,.0f}" if value >= 10 ** (num - 1) else f"{value:.{num}g}"


def draw_panels(path: Path, panels: Iterable[Panel], title: str = "") -> Path:
    """Draw panels one below the other as a PNG for screens of twice the pixels, and return its path."""
    with_groups = [(panel, panel.groups()) for panel in panels]
    # max(1, ...), because a panel without bars still needs an axis.
    heights = [_LINE * max(1, sum(len(bars) + 1 for bars in groups.values())) for _, groups in with_groups]
    width, height = _NAMES + _WIDTH + _TEXTS, sum(heights) + _BELOW * len(heights)
    figure = Figure(figsize=(width, height), dpi=2 * _DPI)
    top = height
    for (panel, groups), inches in zip(with_groups, heights, strict=True):
        top -= inches
        area = (_NAMES / width, top / height, _WIDTH / width, inches / height)
        _draw_panel(figure.add_axes(area), panel, groups)
        top -= _BELOW
    figure.text(_NAMES / width, 1 + 0.38 / height, title, fontsize=10, va="bottom")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")
    return path


def _draw_panel(axes: Axes, panel: Panel, groups: Mapping[str, Sequence[Bar]]) -> None:
    line, names = 0, dict[int, str]()
    for heading, bars in groups.items():
        axes.annotate(
            heading, (0, line), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", fontsize=9, weight="bold", bbox=_HEADING, zorder=4,
        )  # fmt: skip
        for bar in bars:
            line += 1
            names[line] = bar.name
            _draw_bar(axes, line, bar, panel.edge)
        line += 1
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
        fontsize=7.5, bbox=_HEADING, zorder=4,
    )  # fmt: skip


def publish(out: Path, bench: str, machine: dict[str, Any], columns: str, **parts: Any) -> None:
    """Write this program's result, show it with these columns, and print its path and its chart's."""
    result = save_result(out, bench, machine, **parts)
    show(result, *columns.split())
    print(out)
    if bench in HAVE_CHARTS:
        print(draw(result, out.with_suffix(".png")))
