"""The training curve of a run: each metric against steps."""

import json
from itertools import accumulate, groupby, islice
from pathlib import Path
from typing import Any

from fastpsl.files.paths import read_lines
from fastpsl.plots.inline import InlineFigure
from fastpsl.plots.png import write_png

MAX_POINTS = 20_000


def draw_curve(folder: Path) -> Path:
    """Write the training curve of a run as curve.png into its folder."""
    return write_png(curve(folder), folder / "curve.png")


def curve(folder: Path) -> InlineFigure:
    """Draw each metric of a run's metrics.jsonl over steps, in one colour per stage, with its running mean.

    A diamond marks the validation value at a stage's end, from results.json if it exists. The learning rate
    has no mean, and its axis begins at 0. Of long runs only every n-th step is drawn, MAX_POINTS at most.
    """
    with open(folder / "metrics.jsonl") as file:
        stride = 1 + sum(1 for _ in file) // MAX_POINTS
    lines = [line.row for line in islice(read_lines(folder / "metrics.jsonl"), 0, None, stride)]
    counters = ("run_step", "stage", "level", "step", "lr")
    names = [name for name in lines[0] if name not in counters] + ["lr"] if lines else []
    num = len(names) or 1
    figure = InlineFigure(figsize=(9, 2.6 * num))
    axes = figure.subplots(num, 1, sharex=True, squeeze=False)
    val = _val(folder / "results.json")
    for axis, name in zip(axes[:, 0], names, strict=False):
        for number, (stage, group) in enumerate(groupby(lines, key=lambda line: line["stage"])):
            points = [(line["run_step"], line[name]) for line in group if line.get(name) is not None]
            steps, values = [p[0] for p in points], [p[1] for p in points]
            colour = f"C{number}"
            if name == "lr":
                axis.plot(steps, values, color=colour, drawstyle="steps-mid")
                continue
            axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axis.plot(steps, running_mean(values), color=colour, label=stage)
            if name in val.get(stage, {}):
                point = (val[stage]["run_step"], val[stage][name])
                axis.plot(*point, "D", color=colour, markeredgecolor="black", label=f"{stage}, validation")
        axis.set_ylabel(name)
        if name == "lr":
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("step")
    if names:
        axes[0, 0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=6, fontsize="small", frameon=False)
    # Shown verbatim: it must be neither parsed as a formula nor fail if it is not UTF-8.
    figure.suptitle(folder.name.encode(errors="replace").decode(), parse_math=False)
    figure.tight_layout()
    return figure


def _val(results: Path) -> dict[str, dict[str, Any]]:
    """Return stage → its validation metrics, with the run's step at its end as "run_step"."""
    summaries = json.loads(results.read_text()) if results.exists() else []
    ends = accumulate(summary["num_steps"] for summary in summaries)
    return {s["stage"]: s["val"] | {"run_step": end} for s, end in zip(summaries, ends, strict=True)}


def running_mean(values: list[float]) -> list[float]:
    """Return the mean over a window that ends at each value: 5 % of all values, from 1 to 200."""
    width = min(max(1, len(values) // 20), 200)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i + 1] - sums[max(0, i + 1 - width)]) / min(i + 1, width) for i in range(len(values))]
