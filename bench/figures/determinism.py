"""What the chart of determinism shows: losses of bench/determinism.py by step, and their differences."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

FILE = "determinism.json"
# Plots in px: left, right, then top and bottom of the losses and of the differences.
LEFT, RIGHT = 76, 822
LOSSES, DIFFERENCES = (150, 360), (500, 726)
POWERS = range(-9, 1, 3)  # of the differences' axis
NAMES = {
    "batch_norm": "jigsaw, BatchNorm by each process",
    "group_norm": "rotation, no BatchNorm, ReLU",
    "smooth": "rotation, no BatchNorm, GELU",
}


def determinism_words(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the words of the chart.

    Args:
        results: File name → result.

    Raises:
        ValueError: There is no file of bench/determinism.py.
    """
    if FILE not in results:
        raise ValueError(f"no {FILE} in bench/results/: run bench/determinism.py")
    result = results[FILE]
    rows = result["rows"]
    jigsaw = [row for row in rows if row["measured"] == "loss" and row["network"] == "batch_norm"]
    differences = [row for row in rows if row["measured"] == "difference"]
    killed = next(row for row in jigsaw if row["killed_at"])
    num_steps, kill = len(killed["values"]), killed["killed_at"]
    highest = math.ceil(max(max(row["values"]) for row in jigsaw))
    largest = {
        network: max(row["largest_difference"] for row in differences if row["network"] == network)
        for network in NAMES
    }
    inputs = [row for row in rows if row["measured"] == "steps with equal inputs"]
    same = all(row["median"] == num_steps for row in inputs)
    counts = sorted({row["num_processes"] for row in jigsaw})
    on = f"{', '.join(map(str, counts[:-1]))} and {counts[-1]} processes"
    spoken = "; ".join(f"{NAMES[network]}, {value:.1g}" for network, value in largest.items())
    return {
        "title": f"Losses on {on}, and after a kill",
        "description": (
            f"Losses of {num_steps} steps on {on}, and of a run that was killed after {kill} steps and "
            f"resumed. The killed run has the same loss in {killed['num_equal']} of {num_steps} steps. "
            f"{'Images, views and labels are equal in all steps. ' if same else ''}"
            f"Largest differences from the losses on 1 process: {spoken}."
        ),
        "about": f"Jigsaw puzzles, a small network, {result['environment']['num_cores']} CPU cores",
        "left": LEFT, "right": RIGHT, "losses": LOSSES, "differences": DIFFERENCES,
        "lines": [
            {
                "num": row["num_processes"], "killed": row["killed_at"],
                "path": _path(row["values"], lambda loss: loss / highest, *LOSSES),
            }
            for row in jigsaw
        ],
        "ticks": [
            (str(loss), _y(loss / highest, *LOSSES)) for loss in range(0, highest + 1, math.ceil(highest / 4))
        ],
        "kill": {"step": kill, "x": _x(kill - 1, num_steps)},
        "stages": [
            (f"S{number + 1}", _x(sum(epochs[:number]) * num_steps / sum(epochs), num_steps))
            for epochs in [result["settings"]["epochs"]]
            for number in range(len(epochs))
        ],
        "num_steps": num_steps,
        "num_equal": killed["num_equal"],
        "gaps": [
            {
                "network": row["network"], "num": row["num_processes"],
                "path": _path(row["values"], _share_of_power, *DIFFERENCES),
            }
            for row in differences
        ],
        "powers": [
            (f"1e{power}" if power else "1", _y(_share_of_power(10**power), *DIFFERENCES)) for power in POWERS
        ],
        "names": NAMES,
    }  # fmt: skip


def _share_of_power(value: float) -> float:
    """Map the differences' axis to [0, 1]."""
    first, last = POWERS[0], POWERS[-1]
    return (math.log10(value) - first) / (last - first)


def _x(step: float, num_steps: int) -> float:
    return LEFT + (RIGHT - LEFT) * step / (num_steps - 1)


def _y(share: float, top: float, bottom: float) -> float:
    return bottom - share * (bottom - top)


def _path(values: Sequence[float], share: Any, top: float, bottom: float) -> str:
    points = (
        f"{_x(step, len(values)):.1f} {_y(share(value), top, bottom):.1f}"
        for step, value in enumerate(values)
    )
    return "M" + "L".join(points)
