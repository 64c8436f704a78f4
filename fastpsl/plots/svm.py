"""Pictures of SVMs on frozen features: average precision of each block and class, or by the number of shots."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # after the choice of a backend that needs no screen


def draw(
    numbers: Mapping[str, float],
    blocks: Sequence[str],
    classes: Sequence[str],
    chance: float,
    shots: Sequence[int],
    path: Path,
    title: str,
) -> Path:
    """`numbers_of` all classes' SVMs as a PNG: of low-shot learning a curve, else bars. A line: the classes' mean frequency, which chance has."""
    if shots:
        return _draw_shots(numbers, blocks, shots, path, title, chance)
    return _draw_classes(numbers, blocks, classes, path, title, chance)


def _draw_classes(
    numbers: Mapping[str, float],
    blocks: Sequence[str],
    classes: Sequence[str],
    path: Path,
    title: str,
    chance: float,
) -> Path:
    """Bars of mAP_<block> with their values, below them those of AP_<class>_<block> (percent)."""
    figure, (means, each) = pyplot.subplots(
        2, 1, figsize=(max(8, 1 + 0.6 * len(classes)), 7), height_ratios=(1, 1.4), layout="constrained"
    )
    colours = [f"C{number}" for number in range(len(blocks))]
    bars = means.bar(blocks, [numbers[f"mAP_{block}"] for block in blocks], 0.6, color=colours)
    means.bar_label(bars, fmt="%.1f", fontsize=8)
    means.set_ylabel("mAP, %")
    width = 0.8 / len(blocks)
    for number, (block, colour) in enumerate(zip(blocks, colours, strict=True)):
        places = [i + (number - (len(blocks) - 1) / 2) * width for i in range(len(classes))]
        each.bar(
            places, [numbers[f"AP_{name}_{block}"] for name in classes], width, color=colour, label=block
        )
    each.set_xticks(range(len(classes)), classes, rotation=45 if len(classes) > 8 else 0)
    each.set_ylabel("AP, %")
    means.axhline(chance, color="grey", linestyle=":", label="classes' frequency")
    for axis in (means, each):
        axis.set_ylim(0, 105)
    figure.legend(loc="outside lower center", fontsize=8, ncols=len(blocks) + 1)
    figure.suptitle(title, fontsize=10, wrap=True)
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)
    return path


def _draw_shots(
    numbers: Mapping[str, float],
    blocks: Sequence[str],
    shots: Sequence[int],
    path: Path,
    title: str,
    chance: float,
) -> Path:
    """mAP_<k>_<block> over the number of shots, a line a block, the standard deviation of the samples as bars (percent)."""
    figure, axis = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for block in blocks:
        means, deviations = (
            [numbers[f"{name}_{k}_{block}"] for k in sorted(shots)] for name in ("mAP", "sd")
        )
        axis.errorbar(sorted(shots), means, deviations, marker="o", markersize=4, capsize=3, label=block)
    axis.axhline(chance, color="grey", linestyle=":", label="classes' frequency")
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(shots), [str(k) for k in sorted(shots)])
    axis.set_xlabel("positives of a class")
    axis.set_ylabel("mAP, %")
    axis.set_ylim(0, 105)
    axis.set_title(title, fontsize=10, wrap=True)
    figure.legend(loc="outside lower center", fontsize=8, ncols=len(blocks) + 1)
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)
    return path
