"""A stage's summary as a line for people."""

from typing import Any

from fastpsl.engine.gpu_memory import gibibytes
from fastpsl.pipelines.doing import clock
from fastpsl.pipelines.number_words import number_of, percent


def summary_line(summary: dict[str, Any]) -> str:
    """Return a stage's summary as one line for people."""
    num, planned = summary["num_steps"], summary["num_steps_planned"]
    steps = number_of(num, "step") if num == planned else f"{num:,} of {number_of(planned, 'step')}"
    steps += f" in {clock(summary['seconds'])}"
    text = f"{summary['stage']} (level G{summary['level']}): {steps}"
    if summary["loss_start"] is not None:
        text += f", loss {summary['loss_start']:.3f} → {summary['loss_end']:.3f}"
    chance = "" if summary["chance"] is None else f" (chance {percent(summary['chance'])})"
    if held_out := _held_out_words(summary["held_out"], chance):
        text += f", held-out {held_out}"
    if "peak_allocated_bytes" in summary:
        peak, used = gibibytes(summary["peak_allocated_bytes"]), gibibytes(summary["device_used_bytes"])
        text += f", GPU memory {peak} at most ({used} with all else)"
    return text


def _held_out_words(held_out: dict[str, float], chance: str) -> str:
    """Return the held-out metrics as one line; `chance` follows the first accuracy.

    Accuracies are the plain one, top-1 and top-5, or the top-1 of several classifiers ("top1_B4"). A loss is
    added if there is its value for a constant answer ("loss_constant"), or if there is no accuracy (IIC).
    """
    words = []
    for name, label in (("accuracy", "accuracy"), ("top1", "top-1"), ("top5", "top-5")):
        if name in held_out:
            words.append(f"{label} {percent(held_out[name])}")
    parts = [f"{n[5:]} {100 * value:.1f}" for n, value in held_out.items() if n.startswith("top1_")]
    words += [f"top-1 {', '.join(parts)} %"] if parts else []
    words = [words[0] + chance, *words[1:]] if words else []
    for constant in (name for name in held_out if name.endswith("_constant")):
        loss = constant.removesuffix("_constant")
        words.append(
            f"{loss.replace('_', ' ')} {held_out[loss]:.3f} (a constant answer {held_out[constant]:.3f})"
        )
    if not words and "loss" in held_out:
        words.append(f"loss {held_out['loss']:.3f}")
    return ", ".join(words)
