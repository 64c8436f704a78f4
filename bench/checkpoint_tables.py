"""The tables of docs/how_to/resume.md that bench/checkpoint.py's results make."""

from collections.abc import Mapping
from typing import Any

from bench.schema import Results

NAMES = {
    "simclr": "SimCLR, ResNet-50",
    "moco": "MoCo v2, ResNet-50, with the queue and the key encoder",
    "jigsaw": "jigsaw, ResNet-50",
    "rotation": "rotation, RevNet-50",
    "uic_r50": "UIC, ResNet-50",
    "deepcluster": "DeepCluster, AlexNet",
    "sslpp_colorization": "SSL++ colorization",
    "sslpp_rotation": "SSL++ rotation",
    "sslpp_iic": "IIC",
}


def checkpoint_table(results: Results) -> str:
    """Return a Markdown table of the time that training waits for a checkpoint, and of the step after it."""
    titles = ["state", "bytes", "wait, before there was a thread", "wait", "wait, the first time"]
    titles += ["step without a checkpoint", "step beside the write"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for result in _of(results):
        rows = {(row["recipe"], row["measured"], row["how"]): row for row in result["rows"]}
        for recipe in dict.fromkeys(recipe for recipe, measured, _ in rows if measured == "call"):
            cells = [NAMES[recipe], _megabytes(rows[recipe, "call", "thread"]["num_bytes"])]
            cells += [_ms(rows[recipe, "call", how]) for how in ("synchronous", "thread", "thread, first")]
            cells += [_ms(rows[recipe, "step", how]) for how in ("none", "thread")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "Medians, with quartiles in brackets."])


def states_table(results: Results) -> str:
    """Return a Markdown table of the bytes of each recipe's state, by part."""
    lines = ["| recipe | images | backbone | head and optimizer | task | all |", "|---|---|---|---|---|---|"]
    for result in _of(results):
        for row in result["rows"]:
            if row["measured"] == "state":
                parts = (row[f"{name}_bytes"] for name in ("backbone", "learner", "task"))
                cells = [NAMES[row["recipe"]], f"{row['num_images']:,}", *map(_megabytes, parts)]
                lines.append(f"| {' | '.join([*cells, _megabytes(row['num_bytes'])])} |")
    return "\n".join(lines)


def _of(results: Results) -> list[dict[str, Any]]:
    return [result for result in results.values() if result["bench"] == "checkpoint"]


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _ms(row: Mapping[str, Any]) -> str:
    return f"{row['median']:,.0f} ms ({row['quartile_1']:,.0f} to {row['quartile_3']:,.0f})"
