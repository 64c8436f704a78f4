"""Bar charts of scores by block: linear probes, few-shot episodes, SVMs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from fastpsl.plots.inline import InlineFigure
from fastpsl.plots.png import write_png


def draw_blocks(numbers: Mapping[str, float], path: Path, title: str, chance: float) -> Path:
    """Write the figure of `block_figure` to the file `path`."""
    return write_png(block_figure(numbers, title, chance), path)


def block_figure(numbers: Mapping[str, float], title: str, chance: float | None) -> InlineFigure:
    """Draw a linear probe's top-1 accuracy, and its top-5 if there is one, for each block.

    Args:
        numbers: top1_B1, top1_B2, … and top5_B1, …, in percent.
        title: Title of the chart.
        chance: Top-1 accuracy of chance, in percent, drawn as a dotted line; None for no line.
    """
    names = [name[5:] for name in numbers if name.startswith("top1_")]
    figure = InlineFigure(figsize=(max(6.4, 1.6 + 1.1 * len(names)), 4), layout="constrained")
    axis = figure.subplots()
    kinds = [kind for kind in ("top1", "top5") if f"{kind}_{names[0]}" in numbers]
    groups = {f"top-{kind[3:]}": [numbers[f"{kind}_{name}"] for name in names] for kind in kinds}
    for bars in _grouped_bars(axis, groups, ("C0", "#c8d8ea")):
        axis.bar_label(bars, fmt="%.1f", fontsize=8)
    if chance is not None:
        axis.axhline(chance, color="grey", linestyle=":", label="chance")
    axis.set_ylim(0, min(105, 1.1 * max(numbers.values()) + 5))
    _accuracies(figure, axis, names, title)
    return figure


def draw_accuracies(
    accuracies: Mapping[str, tuple[float, float]], path: Path, title: str, chance: float
) -> Path:
    """Draw a few-shot evaluation's accuracies with their confidence intervals.

    Args:
        accuracies: Label of a bar → (mean, half of its interval), in percent.
        path: File to write.
        title: Title of the chart.
        chance: Accuracy of chance, in percent, drawn as a dotted line.
    """
    names = list(accuracies)
    figure = Figure(figsize=(max(4.8, 1.6 + 1.1 * len(names)), 4), layout="constrained")
    axis = figure.subplots()
    means, intervals = ([accuracy[i] for accuracy in accuracies.values()] for i in range(2))
    axis.bar(range(len(names)), means, 0.7, color="#7ba3cc", yerr=intervals, capsize=5)
    for place, (mean, interval) in enumerate(accuracies.values()):
        label = f"{mean:.2f}\n± {interval:.2f}"
        axis.text(place, mean + interval + 1, label, ha="center", va="bottom", fontsize=8)
    axis.axhline(chance, color="grey", linestyle=":", label=f"chance, {chance:.1f} %")
    axis.set_ylim(0, max(max(means) + max(intervals) + 12, chance + 12))
    _accuracies(figure, axis, names, title)
    return write_png(figure, path)


def draw_precisions(
    numbers: Mapping[str, float],
    blocks: Sequence[str],
    classes: Sequence[str],
    chance: float,
    path: Path,
    title: str,
) -> Path:
    """Draw the SVMs' mean average precision for each block, and below it that of each class.

    Args:
        numbers: mAP_<block> and AP_<class>_<block>, in percent.
        blocks: Names of the blocks.
        classes: Names of the classes.
        chance: The classes' mean frequency in percent, the mAP of chance, drawn as a dotted line.
        path: File to write.
        title: Title of the chart.
    """
    figure = Figure(figsize=(max(8, 1 + 0.6 * len(classes)), 7), layout="constrained")
    means, each = figure.subplots(2, 1, height_ratios=(1, 1.4))
    colours = [f"C{number}" for number in range(len(blocks))]
    bars = means.bar(blocks, [numbers[f"mAP_{block}"] for block in blocks], 0.6, color=colours)
    means.bar_label(bars, fmt="%.1f", fontsize=8)
    means.set_ylabel("mAP, %")
    groups = {block: [numbers[f"AP_{name}_{block}"] for name in classes] for block in blocks}
    list(_grouped_bars(each, groups, colours))
    each.set_xticks(range(len(classes)), classes, rotation=45 if len(classes) > 8 else 0)
    each.set_ylabel("AP, %")
    means.axhline(chance, color="grey", linestyle=":", label="classes' frequency")
    for axis in (means, each):
        axis.set_ylim(0, 105)
    figure.legend(loc="outside lower center", fontsize=8, ncols=len(blocks) + 1)
    figure.suptitle(title, fontsize=10, wrap=True)
    return write_png(figure, path)


def _grouped_bars(
    axis: Axes, groups: Mapping[str, Sequence[float]], colours: Sequence[str]
) -> Iterator[BarContainer]:
    """Draw the bars of each group side by side at 0, 1, 2, …, and yield them."""
    width = 0.8 / len(groups)
    for number, (label, values) in enumerate(groups.items()):
        places = [i + (number - (len(groups) - 1) / 2) * width for i in range(len(values))]
        yield axis.bar(places, values, width, color=colours[number], label=label)


def _accuracies(figure: Figure, axis: Axes, names: Sequence[str], title: str) -> None:
    axis.set_xticks(range(len(names)), names)
    axis.set_ylabel("accuracy, %")
    figure.legend(loc="outside lower center", fontsize=8, ncols=3)
    axis.set_title(title, fontsize=10, wrap=True)
