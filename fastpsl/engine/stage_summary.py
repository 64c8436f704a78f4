"""A stage's summary as a line for people."""

from typing import Any

from fastpsl.console.progress import clock
from fastpsl.console.words import gibibytes, number_of, percent, val_words


def summary_line(summary: dict[str, Any]) -> str:
    """Return a stage's summary as one line for people."""
    num, planned = summary["num_steps"], summary["num_steps_planned"]
    steps = number_of(num, "step") if num == planned else f"{num:,} of {number_of(planned, 'step')}"
    steps += f" in {clock(summary['seconds'])}"
    text = f"{summary['stage']} (level G{summary['level']}): {steps}"
    if summary["loss_start"] is not None:
        text += f", loss {summary['loss_start']:.3f} → {summary['loss_end']:.3f}"
    chance = "" if summary["chance"] is None else f" (chance {percent(summary['chance'])})"
    if val := val_words(summary["val"], chance):
        text += f", validation {val}"
    if "peak_allocated_bytes" in summary:
        peak, used = gibibytes(summary["peak_allocated_bytes"]), gibibytes(summary["device_used_bytes"])
        text += f", GPU memory {peak} at most ({used} with all else)"
    return text
