"""The picture of a few-shot evaluation: each block's accuracy with its confidence interval."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # after the choice of a backend that needs no screen


def draw_accuracies(
    accuracies: Mapping[str, tuple[float, float]], path: Path, title: str, chance: float
) -> Path:
    """Bars of (mean, half of its interval) in percent, by the names below them; `chance`: in percent, a line."""
    names = list(accuracies)
    figure, axis = pyplot.subplots(figsize=(max(4.8, 1.6 + 1.1 * len(names)), 4), layout="constrained")
    means, intervals = ([accuracy[i] for accuracy in accuracies.values()] for i in range(2))
    axis.bar(range(len(names)), means, 0.7, color="#7ba3cc", yerr=intervals, capsize=5)
    for place, (mean, interval) in enumerate(accuracies.values()):
        label = f"{mean:.2f}\n± {interval:.2f}"
        axis.text(place, mean + interval + 1, label, ha="center", va="bottom", fontsize=8)
    axis.axhline(chance, color="grey", linestyle=":", label=f"chance, {chance:.1f} %")
    axis.set_xticks(range(len(names)), names)
    axis.set_ylabel("accuracy, %")
    axis.set_ylim(0, max(max(means) + max(intervals) + 12, chance + 12))
    figure.legend(loc="outside lower center", fontsize=8)
    axis.set_title(title, fontsize=10, wrap=True)
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)
    return path
