"""The picture of a multi-label score: the average precision of each class."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # after the choice of a backend that needs no screen


def draw_classes(numbers: Mapping[str, float], path: Path, title: str) -> Path:
    """Bars of AP_<class>, in percent, the highest first, their values behind them; the mean ("mAP") a line."""
    named = sorted(
        ((value, name[3:]) for name, value in numbers.items() if name.startswith("AP_")), reverse=True
    )
    figure, axis = pyplot.subplots(figsize=(7, 1.5 + 0.28 * len(named)), layout="constrained")
    axis.axvline(numbers["mAP"], color="grey", linestyle=":", zorder=0, label=f"mean {numbers['mAP']:.1f}")
    bars = axis.barh([name for _, name in named], [value for value, _ in named], color="C0")
    for text in axis.bar_label(bars, fmt="%.1f", fontsize=8, padding=2):
        text.set_backgroundcolor("white")  # the line of the mean would run through it
    axis.invert_yaxis()
    axis.set_xlim(0, 108)
    axis.set_xlabel("average precision, %")
    figure.legend(loc="outside lower right", fontsize=8)
    axis.set_title(title, fontsize=10, wrap=True)
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)
    return path
