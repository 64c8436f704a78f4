"""The picture of a linear probe: top-1 and top-5 of each block."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # after the choice of a backend that needs no screen


def draw_blocks(numbers: Mapping[str, float], path: Path, title: str, chance: float) -> Path:
    """Bars of top1_B1, top1_B2, … (and top5_…) in percent, their values above them; `chance`: of top-1, in percent, a line."""
    names = [name[5:] for name in numbers if name.startswith("top1_")]
    figure, axis = pyplot.subplots(figsize=(max(6.4, 1.6 + 1.1 * len(names)), 4), layout="constrained")
    kinds = [kind for kind in ("top1", "top5") if f"{kind}_{names[0]}" in numbers]
    width = 0.8 / len(kinds)
    for number, kind in enumerate(kinds):
        places = [i + (number - (len(kinds) - 1) / 2) * width for i in range(len(names))]
        bars = axis.bar(
            places, [numbers[f"{kind}_{name}"] for name in names], width, label=f"top-{kind[3:]}",
            color=("C0", "#c8d8ea")[number],
        )  # fmt: skip
        axis.bar_label(bars, fmt="%.1f", fontsize=8)
    axis.axhline(chance, color="grey", linestyle=":", label="chance")
    axis.set_xticks(range(len(names)), names)
    axis.set_ylabel("accuracy, %")
    axis.set_ylim(0, min(105, 1.1 * max(numbers.values()) + 5))
    figure.legend(loc="outside lower center", fontsize=8, ncols=3)
    axis.set_title(title, fontsize=10, wrap=True)
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)
    return path
