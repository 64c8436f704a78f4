"""Draw an experiment: the scores of every block and seed, the differences that decide, and curves."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.evidence.plan import RANDOM, UNTRAINED, Plan
from bench.evidence.results import block_means

_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c564b",
    "#7f7f00",
    "#332288",
    "#882255",
)
_GREY = "#777777"
_EVALUATIONS = {"linear": "linear classifiers", "neighbours": "nearest neighbours"}


def draw_figure(plan: Plan, results: Mapping[str, Any], path: Path) -> Path:
    """Draw results.json as a PNG of a page's width, for screens of twice the pixels.

    First come the numbers of the endpoint's evaluation by block, a line through the means of an arm and a
    point for each seed. Below are the paired differences, a point for each seed, with the interval of their
    mean. Last, if the plan has a curve, come its values over the epochs, a line for each training.
    """
    heights = [3.4, 0.8 + 0.26 * len(results["differences"]), *([3.4] if results["curves"] else [])]
    figure = Figure(figsize=(7.6, sum(heights) + 0.8), dpi=220, layout="constrained")
    axes = figure.subplots(len(heights), 1, height_ratios=heights)
    colours = dict(zip(plan.arms, cycle(_COLOURS), strict=False)) | {RANDOM: _GREY, UNTRAINED: "black"}
    _draw_scores(axes[0], plan, results, colours)
    _draw_differences(axes[1], results["differences"])
    if results["curves"]:
        _draw_curves(axes[2], plan, results["curves"], colours)
    figure.suptitle(plan.title, fontsize=11)
    lines, names = axes[0].get_legend_handles_labels()
    figure.legend(
        lines, names, loc="outside lower center", ncols=min(5, len(names)), fontsize=8, frameon=False
    )
    figure.savefig(path)
    return path


def in_words(evaluation: str) -> str:
    """Return the name of an evaluation for people."""
    return _EVALUATIONS.get(evaluation, evaluation)


def _draw_scores(axes: Axes, plan: Plan, results: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    numbers, means = block_means(results)
    for arm, rows in means.items():
        axes.plot(
            range(len(rows)), [row["mean"] for row in rows], color=colours[arm], label=arm, linewidth=1.4
        )
        for place, row in enumerate(rows):
            axes.scatter([place] * len(row["values"]), row["values"], color=colours[arm], s=12, zorder=3)
    axes.set_xticks(range(len(numbers)), [number.rpartition("_")[2] for number in numbers])
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_title(f"by {in_words(plan.endpoint.evaluation)}, a point for each seed", fontsize=10, loc="left")
    axes.grid(alpha=0.3)


def _draw_differences(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.axvline(0, color="black", linewidth=0.8)
    for place, row in enumerate(rows):
        if row["interval"]:
            axes.plot(row["interval"], [place, place], color=_COLOURS[0], linewidth=2)
        axes.scatter(row["values"], [place] * len(row["values"]), color=_GREY, s=12, zorder=3)
        axes.scatter([row["mean"]], [place], color=_COLOURS[0], s=36, zorder=4)
    names = [f"{' - '.join(row['pair'])}, {row['number'].rpartition('_')[2]}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("points of accuracy")
    axes.set_title("differences of one seed: seeds, mean, 95 % interval", fontsize=10, loc="left")
    axes.grid(alpha=0.3, axis="x")


def _draw_curves(axes: Axes, plan: Plan, curves: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    for arm, of_arm in curves.items():
        for values in of_arm["values"]:
            axes.plot(of_arm["epochs"], values, color=colours[arm], linewidth=0.6, alpha=0.5)
        means = [statistics.fmean(values) for values in zip(*of_arm["values"], strict=True)]
        axes.plot(of_arm["epochs"], means, color=colours[arm], linewidth=1.8)
    axes.set_xlabel("epoch")
    assert plan.curve is not None
    axes.set_title(f"{plan.curve.name.replace('_', ' ')} while training, %", fontsize=10, loc="left")
    axes.grid(alpha=0.3)
