"""The chart of the online probe over a run: scores by validation labels, and signs of collapse."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fastpsl.plots.png import write_png


def draw_probes(lines: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw the lines of probe.jsonl, with a new curve per stage, because its features are another block's.

    Args:
        lines: Lines in order. Those with a feature_std of None were not finite and are left out.
        path: File to write.
    """
    scored = any(line["knn_accuracy"] is not None for line in lines)
    names = ["accuracy, %", "std", "effective rank"] if scored else ["std", "effective rank"]
    figure = Figure(figsize=(8, 2.4 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)
    for number, (stage, group) in enumerate(groupby(lines, key=lambda line: line["stage"])):
        rows = [row for row in group if row["feature_std"] is not None]
        if not rows:
            continue
        epochs = [row["epoch"] for row in rows]
        name = f"{stage}, {rows[0]['block']}"
        if scored:
            for kind, style in (("linear", "o-"), ("knn", "s--")):
                values = [100 * row[f"{kind}_accuracy"] for row in rows]
                label = f"{name}: {'kNN' if kind == 'knn' else kind}"
                axes[0, 0].plot(epochs, values, style, color=f"C{number}", label=label)
        axes[-2, 0].plot(epochs, [row["feature_std"] for row in rows], "o-", color=f"C{number}", label=name)
        axes[-1, 0].plot(
            epochs, [row["effective_rank"] for row in rows], "o-", color=f"C{number}", label=name
        )
    if scored:
        chance = 100 / max(line["num_classes"] for line in lines)
        axes[0, 0].axhline(chance, color="grey", linestyle=":", label="chance")
    axes[-2, 0].set_ylim(bottom=0)
    axes[-1, 0].set_ylim(bottom=0)
    axes[-1, 0].set_xlabel("epoch")
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return write_png(figure, path)
