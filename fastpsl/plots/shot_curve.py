"""The curve of SVMs that learn from few shots: mean average precision over the number of shots."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fastpsl.plots.png import write_png


def draw_shots(
    numbers: Mapping[str, float],
    blocks: Sequence[str],
    shots: Sequence[int],
    chance: float,
    path: Path,
    title: str,
) -> Path:
    """Draw a line for each block, with the standard deviation over samples as error bars.

    Args:
        numbers: mAP_<shots>_<block> and sd_<shots>_<block>, in percent.
        blocks: Names of the blocks.
        shots: Positives per class, in any order.
        chance: The classes' mean frequency in percent, the mAP of chance, drawn as a dotted line.
        path: File to write.
        title: Title of the chart.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis, shots = figure.subplots(), sorted(shots)
    for block in blocks:
        means, deviations = ([numbers[f"{name}_{k}_{block}"] for k in shots] for name in ("mAP", "sd"))
        axis.errorbar(shots, means, deviations, marker="o", markersize=4, capsize=3, label=block)
    axis.axhline(chance, color="grey", linestyle=":", label="classes' frequency")
    axis.set_xscale("log", base=2)
    axis.set_xticks(shots, [str(k) for k in shots])
    axis.set_xlabel("positives of a class")
    axis.set_ylabel("mAP, %")
    axis.set_ylim(0, 105)
    axis.set_title(title, fontsize=10, wrap=True)
    figure.legend(loc="outside lower center", fontsize=8, ncols=len(blocks) + 1)
    return write_png(figure, path)
