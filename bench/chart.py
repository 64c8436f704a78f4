"""The bar chart of bench/throughput.py's result: loaders alone on the left, steps and both together on the right."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.peers import TITLES

# Okabe and Ito's colours, told apart by everybody: ours dark, peers light; a name keeps its colour in both panels.
COLOURS = {
    "step": "#777777", "ffcv": "#0072B2", "dali": "#009E73", "torchvision": "#D55E00", "resident": "#000000",
    "synthetic": "#999999", "ffcv_loader": "#7FB8D8", "dali_reader": "#7FCEB8", "dataloader": "#EAAE7F",
    "webdataset": "#F0E442",
}  # fmt: skip
_CUT = 1.5  # times the longest bar of real data
_BAR_INCHES, _TOP_INCHES, _BOTTOM_INCHES = 0.23, 0.8, 0.6


def draw_chart(result: dict[str, Any], path: Path) -> None:
    """Medians as bars, quartiles as whiskers; on both together: its ratio to the slower of its parts."""
    rows = result["rows"]
    loaders = _groups([row for row in rows if row["measured"] in ("loader", "peer")])
    steps_by_stage = _groups([row for row in rows if row["measured"] in ("step", "both")])
    # At least one, for an empty panel's axis.
    lines = [max(1, sum(len(group) + 1 for group in panel.values())) for panel in (loaders, steps_by_stage)]
    height = _TOP_INCHES + _BAR_INCHES * max(lines) + _BOTTOM_INCHES
    figure = plt.figure(figsize=(13, height))
    # Each panel as high as it has lines, from the top down; below the shorter one it stays empty.
    left, right = (
        figure.add_axes(
            (x, 1 - (_TOP_INCHES + _BAR_INCHES * num) / height, 0.355, _BAR_INCHES * num / height)
        )
        for x, num in zip((0.125, 0.605), lines, strict=True)
    )
    shown = "both / min(loader, step)"
    ratios = {_key(row): row["median"] for row in result["ratios"] if row["what"] == shown}
    _draw(left, loaders, {})
    _draw(right, steps_by_stage, ratios)
    left.set_title("loader alone", loc="left")
    right.set_title("step alone, and both together (× the slower of the two)", loc="left")
    settings, machine = result["settings"], result["environment"]
    backbone = settings["backbone"] or "the recipes' backbones"
    figure.suptitle(
        f"{backbone}, precision {settings['precision']}, batch {settings['batch_size']}, "
        f"{result['data']['name']}\n{machine['gpu'] or machine['cpu']}, {machine['num_cores']} cores, "
        f"load average {machine['load_average_before']} before",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _group(row: dict[str, Any]) -> str:
    """A heading: what is comparable stands below one."""
    views = "1 view" if row["num_views"] == 1 else f"{row['num_views']} views"
    if row["stage"] is None:
        return f"{views}, random resized crops"
    return f"{row.get('recipe', 'jigsaw')} {row['stage']}, {views}"


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row.get("recipe"), row["decoder"], row["num_views"], row["stage"]


def _groups(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by heading, in the colours' order."""
    names = list(COLOURS)
    ordered = sorted(rows, key=lambda row: names.index(_name(row)))
    return {text: [row for row in ordered if _group(row) == text] for text in map(_group, rows)}


def _draw(axes: Axes, groups: dict[str, list[dict[str, Any]]], ratios: dict[Any, float]) -> None:
    """Horizontal bars from the top down, all of one thickness, each with its name; above each group its title."""
    rows = [row for group in groups.values() for row in group]
    highest = [row["quartile_3"] for row in rows if row["decoder"] != "synthetic"]
    # A synthetic loader is beyond compare: its bar is cut.
    edge = _CUT * max(highest) if highest else float("inf")
    y, ticks, names = 0, [], []
    for title, group in groups.items():
        axes.annotate(
            title, (0, y), (4, 0), textcoords="offset points", va="center", fontsize=9, weight="bold"
        )
        for row in group:
            y += 1
            ticks.append(y)
            names.append(_title(row))
            _bar(axes, y, row, edge, ratios)
        y += 1
    axes.set_yticks(ticks, names, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(y - 0.4, -0.6)
    axes.set_xlabel("samples/s (median, quartiles)")
    axes.margins(x=0.2)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)


def _bar(axes: Axes, y: int, row: dict[str, Any], edge: float, ratios: dict[Any, float]) -> None:
    label = f"  {row['median']:,.0f}" if row["median"] >= 100 else f"  {row['median']:.1f}"
    is_cut = row["median"] > edge
    if row["measured"] == "both":
        label += f"  (×{ratios[_key(row)]:.2f})"
    axes.barh(y, min(row["median"], edge), 0.85, color=COLOURS[_name(row)])
    if not is_cut:
        whiskers = [[row["median"] - row["quartile_1"]], [row["quartile_3"] - row["median"]]]
        axes.errorbar(row["median"], y, xerr=whiskers, ecolor="#444", elinewidth=1)
    axes.text(edge if is_cut else row["quartile_3"], y, label + " →" * is_cut, va="center", fontsize=7.5)


def _name(row: dict[str, Any]) -> str:
    return "step" if row["measured"] == "step" else str(row["decoder"])


def _title(row: dict[str, Any]) -> str:
    if row["measured"] == "step":
        return "step alone"
    if row["measured"] == "both":
        return f"with {row['decoder']}"
    return TITLES.get(row["decoder"], f"fastpsl, {row['decoder']}")
