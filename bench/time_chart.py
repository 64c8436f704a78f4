"""The curves of bench/time_to_accuracy.py: accuracy of each seed over seconds of training, and when the target was reached."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bench.program import counted


def draw_times(result: dict[str, Any], path: Path) -> Path:
    """A thin line a seed through dots of the stages' colours; the target dashed, and the median second at which it was reached."""
    looks = [row for row in result["rows"] if row["measured"] == "accuracy"]
    settings, machine = result["settings"], result["environment"]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    stages = list(dict.fromkeys(row["stage"] for row in looks))
    for seed in range(settings["repeats"]):
        seconds, accuracies = (
            [row["seconds"][seed] for row in looks],
            [100 * row["values"][seed] for row in looks],
        )
        axes.plot(seconds, accuracies, color="#999", linewidth=1, zorder=1)
    for number, stage in enumerate(stages):
        rows = [row for row in looks if row["stage"] == stage]
        for seed in range(settings["repeats"]):
            seconds, accuracies = (
                [row["seconds"][seed] for row in rows],
                [100 * row["values"][seed] for row in rows],
            )
            axes.plot(
                seconds,
                accuracies,
                "o",
                color=f"C{number}",
                markersize=3,
                label=stage if seed == 0 else None,
            )
    target = settings["target"]
    axes.axhline(100 * target, color="grey", linestyle="--", linewidth=1, label=f"target {100 * target:g} %")
    for row in result["rows"]:
        if row["measured"] == "seconds to accuracy" and row["accuracy"] == target:
            told = f"{row['median']:.1f} s, {row['num_reached']} of {counted(settings['repeats'], 'seed')}"
            # Above the line and towards the middle: below it may be the axis.
            is_late = row["median"] > max(looks[-1]["seconds"]) / 2
            axes.annotate(
                told, (row["median"], 100 * target), (-6 if is_late else 6, 5), textcoords="offset points",
                fontsize=9, ha="right" if is_late else "left",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
            )  # fmt: skip
            axes.plot(row["median"], 100 * target, "k|", markersize=14)
    axes.margins(y=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds of training, the looks left out")
    axes.set_ylabel(f"held-out accuracy ({looks[0]['monitor']}), %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best")
    data = result["data"]
    axes.set_title(
        f"{looks[0]['recipe']}, {settings['plan']}, {data['name']} ({data['num_samples']:,} images), "
        f"{machine['gpu'] or machine['cpu']}", fontsize=10,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
