"""The bar chart of a multi-label score: the average precision of each class."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from fastpsl.plots.png import write_png


def draw_classes(numbers: Mapping[str, float], path: Path, title: str) -> Path:
    """Draw a bar for each AP_<class> (percent), the highest first, and the mean ("mAP") as a line."""
    classes = sorted(
        ((value, name[3:]) for name, value in numbers.items() if name.startswith("AP_")), reverse=True
    )
    figure = Figure(figsize=(7, 1.5 + 0.28 * len(classes)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(numbers["mAP"], color="grey", linestyle=":", zorder=0, label=f"mean {numbers['mAP']:.1f}")
    bars = axis.barh([name for _, name in classes], [value for value, _ in classes], color="C0")
    for text in axis.bar_label(bars, fmt="%.1f", fontsize=8, padding=2):
        text.set_backgroundcolor("white")  # because the line of the mean may cross it
    axis.invert_yaxis()
    axis.set_xlim(0, 108)
    axis.set_xlabel("average precision, %")
    figure.legend(loc="outside lower right", fontsize=8)
    axis.set_title(title, fontsize=10, wrap=True)
    return write_png(figure, path)
