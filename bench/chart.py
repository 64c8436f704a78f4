"""The bar chart of bench/throughput.py's result: loaders alone on the left, steps and both together on the right."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.peers import TITLES

# Okabe and Ito's colours, told apart by everybody; a name keeps its colour in both panels.
COLOURS = {
    "step": "#999999", "ffcv": "#0072B2", "torchvision": "#E69F00", "synthetic": "#009E73",
    "ffcv_loader": "#56B4E9", "dataloader": "#F0E442",
}  # fmt: skip
_BAR = 0.8  # of the room between two groups
_CUT = 1.5  # times the longest bar of real data


def draw_chart(result: dict[str, Any], path: Path) -> None:
    """Medians as bars, quartiles as whiskers; on both together: its ratio to the slower of its parts."""
    rows = result["rows"]
    num_bars = len(rows) + 2
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, max(4.5, 0.24 * num_bars)), layout="constrained")
    loaders = [row for row in rows if row["measured"] in ("loader", "peer")]
    _groups(left, loaders, lambda row: _views(row), {})
    steps = [row for row in rows if row["measured"] in ("step", "both")]
    ratios = {(r["decoder"], r["num_views"], r["stage"]): r["median"] for r in result["ratios"]}
    _groups(right, steps, lambda row: f"{row['stage']}\n{_views(row)}", ratios)
    left.set_title("loader alone", loc="left")
    right.set_title("step alone, and both together (× the slower of its two parts)", loc="left")
    settings, machine = result["settings"], result["environment"]
    figure.suptitle(
        f"{settings['backbone']} jigsaw, {settings['precision']}, batch {settings['batch_size']}, "
        f"{result['data']['name']}\n{machine['gpu'] or machine['cpu']}, {machine['num_cores']} cores, "
        f"load average {machine['load_average_before']} before",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _views(row: dict[str, Any]) -> str:
    return "1 view" if row["num_views"] == 1 else f"{row['num_views']} views"


def _groups(axes: Axes, rows: list[dict[str, Any]], title: Any, ratios: dict[Any, float]) -> None:
    """Horizontal bars in groups of equal title, from the top down."""
    titles = list(dict.fromkeys(title(row) for row in rows))
    names = [name for name in COLOURS if any(_name(row) == name for row in rows)]
    height = _BAR / len(names)
    highest = [row["quartile_3"] for row in rows if row["decoder"] != "synthetic"]
    # A synthetic loader is beyond compare: its bar is cut.
    edge = _CUT * max(highest) if highest else float("inf")
    for row in rows:
        name = _name(row)
        y = titles.index(title(row)) + (names.index(name) - (len(names) - 1) / 2) * height
        whiskers = [[row["median"] - row["quartile_1"]], [row["quartile_3"] - row["median"]]]
        label = f"  {row['median']:,.0f}" if row["median"] >= 100 else f"  {row['median']:.1f}"
        is_cut = row["median"] > edge
        if row["measured"] == "both":
            label += f"  (×{ratios[row['decoder'], row['num_views'], row['stage']]:.2f})"
        axes.barh(y, min(row["median"], edge), height, color=COLOURS[name], edgecolor="white")
        if not is_cut:
            axes.errorbar(row["median"], y, xerr=whiskers, ecolor="#444", elinewidth=1)
        axes.text(edge if is_cut else row["quartile_3"], y, label + " →" * is_cut, va="center", fontsize=7.5)
    for name in names:
        axes.barh(
            0,
            0,
            color=COLOURS[name],
            label={"step": "step alone"}.get(name, TITLES.get(name, f"decoder {name}")),
        )
    axes.set_yticks(range(len(titles)), titles)
    axes.invert_yaxis()
    axes.set_xlabel("samples/s (median, quartiles)")
    axes.margins(x=0.22)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.09), ncol=len(names), frameon=False)


def _name(row: dict[str, Any]) -> str:
    return "step" if row["measured"] == "step" else str(row["decoder"])
