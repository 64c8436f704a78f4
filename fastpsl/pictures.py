"""Pictures of a run: the training curve, and contact sheets of what the network sees."""

import json
from itertools import groupby, islice
from pathlib import Path

import matplotlib
from torch import Tensor
from torchvision.utils import make_grid, save_image

matplotlib.use("Agg")
from matplotlib import pyplot  # after the choice of a backend that needs no screen

NUM_PICTURES = 16
MAX_POINTS = 20_000


def save_contact_sheet(pictures: Tensor, path: Path) -> None:
    """The first 16 of float [n, 3, h, w] in [0, 1] as one PNG."""
    num = min(len(pictures), NUM_PICTURES)
    save_image(make_grid(pictures[:num], nrow=max(1, round(num**0.5)), padding=8, pad_value=0.25), path)


def draw_curve(folder: Path) -> Path:
    """curve.png from metrics.jsonl: each metric against steps, a colour a stage, pale steps under their running mean.

    Of long runs every n-th step is drawn, at most 20,000.
    """
    with open(folder / "metrics.jsonl") as file:
        stride = 1 + sum(1 for _ in file) // MAX_POINTS
        file.seek(0)
        lines = [json.loads(line) for line in islice(file, 0, None, stride)]
    counters = ("run_step", "stage", "level", "step", "lr")
    names = [name for name in lines[0] if name not in counters] + ["lr"] if lines else []
    figure, axes = pyplot.subplots(
        len(names) or 1, 1, sharex=True, squeeze=False, figsize=(9, 2.6 * (len(names) or 1))
    )
    for axis, name in zip(axes[:, 0], names, strict=False):
        for number, (stage, group) in enumerate(groupby(lines, key=lambda line: line["stage"])):
            points = [(line["run_step"], line[name]) for line in group if line[name] is not None]
            steps, values = [p[0] for p in points], [p[1] for p in points]
            axis.plot(steps, values, color=f"C{number}", alpha=0.25, linewidth=0.8)
            axis.plot(steps, running_mean(values), color=f"C{number}", label=stage)
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("step")
    if names:
        axes[0, 0].legend(loc="upper right")
    figure.suptitle(folder.name)
    figure.tight_layout()
    path = folder / "curve.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def running_mean(values: list[float]) -> list[float]:
    """Means over the last 5 % of the values, at least one and at most 200."""
    width = min(max(1, len(values) // 20), 200)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i + 1] - sums[max(0, i + 1 - width)]) / min(i + 1, width) for i in range(len(values))]
