"""Pictures of a run: the training curve, and contact sheets of what the network sees."""

import json
from collections.abc import Sequence
from itertools import accumulate, groupby, islice
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.files.json_lines import read_lines

matplotlib.use("Agg")
from matplotlib import pyplot  # after the choice of a backend that needs no screen

NUM_PICTURES = 16
MAX_POINTS = 20_000
# Of a contact sheet: pictures narrower than this are enlarged by whole pixels, so that 32-px ones and their captions
# can be seen.
_MIN_WIDTH_PX = 150
_GAP_PX, _LINE_PX, _FONT_PX = 8, 16, 12


def captions(
    batch: Batch, class_names: Sequence[str] | None = None, of_task: Sequence[str] = ()
) -> list[str]:
    """A caption a sample: its number in the data set and its label, in words where there are names; below, the task's."""
    lines = []
    for i, (index, label) in enumerate(zip(batch.indices.tolist(), batch.labels.tolist(), strict=True)):
        known = class_names is not None and 0 <= label < len(class_names)
        name = class_names[label] if class_names is not None and known else f"class {label}" * (label >= 0)
        lines.append(
            f"#{index} {name}".rstrip() + "".join(f"\n{text}" for text in of_task[i : i + 1] if text)
        )
    return lines


def save_contact_sheet(
    pictures: Tensor, path: Path, captions: Sequence[str] = (), num_pictures: int = NUM_PICTURES
) -> None:
    """The first `num_pictures` of float [n, 3, h, w] in [0, 1] as one PNG; under each its caption, of any number of lines.

    A line that is wider than its picture is cut, and ends in "…" then.
    """
    shown = (pictures[:num_pictures].permute(0, 2, 3, 1) * 255).round().clamp(0, 255).byte().cpu().numpy()
    scale = -(-_MIN_WIDTH_PX // shown.shape[2])
    shown = shown.repeat(scale, axis=1).repeat(scale, axis=2)
    num, height, width = shown.shape[:3]
    texts = [caption.split("\n") for caption in captions[:num]]
    text_px = _LINE_PX * max(map(len, texts), default=0)
    columns = max(1, round(num**0.5))
    rows = -(-num // columns)
    step_y, step_x = height + text_px + _GAP_PX, width + _GAP_PX
    sheet = Image.fromarray(np.full((rows * step_y + _GAP_PX, columns * step_x + _GAP_PX, 3), 64, np.uint8))
    # Matplotlib's own: it is always there, and holds Latin, Greek and Cyrillic.
    font = ImageFont.truetype(findfont("DejaVu Sans"), _FONT_PX)
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(shown):
        top, left = i // columns * step_y + _GAP_PX, i % columns * step_x + _GAP_PX
        sheet.paste(Image.fromarray(picture), (left, top))
        for number, line in enumerate(texts[i] if i < len(texts) else ()):
            at = (left, top + height + 1 + number * _LINE_PX)
            draw.text(at, _fitted(line, width, font), fill=(235, 235, 235), font=font)
    sheet.save(path, format="PNG")


def _fitted(line: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    kept = line
    while kept and font.getlength(kept if kept == line else kept + "…") > width:
        kept = kept[:-1]
    return kept if kept == line else kept + "…"


def draw_curve(folder: Path) -> Path:
    """`curve` as curve.png in the run's folder."""
    path = folder / "curve.png"
    figure = curve(folder)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def curve(folder: Path) -> Figure:
    """Of a run's metrics.jsonl: each metric against steps, a colour a stage, pale steps under their running mean.

    A diamond is the held-out value at a stage's end, from results.json where there is one. The learning rate is drawn
    as it was, without a mean. Of long runs every n-th step is drawn, at most 20,000.
    """
    with open(folder / "metrics.jsonl") as file:
        stride = 1 + sum(1 for _ in file) // MAX_POINTS
    lines = [line.row for line in islice(read_lines(folder / "metrics.jsonl"), 0, None, stride)]
    counters = ("run_step", "stage", "level", "step", "lr")
    names = [name for name in lines[0] if name not in counters] + ["lr"] if lines else []
    figure, axes = pyplot.subplots(
        len(names) or 1, 1, sharex=True, squeeze=False, figsize=(9, 2.6 * (len(names) or 1))
    )
    held_out = _held_out(folder / "results.json")
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
            if name in held_out.get(stage, {}):
                point = (held_out[stage]["run_step"], held_out[stage][name])
                axis.plot(*point, "D", color=colour, markeredgecolor="black", label=f"{stage}, held out")
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("step")
    if names:
        axes[0, 0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=6, fontsize="small", frameon=False)
    # As it is: neither a formula nor, where it is no UTF-8, an error.
    figure.suptitle(folder.name.encode(errors="replace").decode(), parse_math=False)
    figure.tight_layout()
    return figure


def _held_out(results: Path) -> dict[str, dict[str, Any]]:
    """Stage → its held-out metrics and the run's step at its end."""
    summaries = json.loads(results.read_text()) if results.exists() else []
    ends = accumulate(summary["num_steps"] for summary in summaries)
    return {s["stage"]: s["held_out"] | {"run_step": end} for s, end in zip(summaries, ends, strict=True)}


def running_mean(values: list[float]) -> list[float]:
    """Means over the last 5 % of the values, at least one and at most 200."""
    width = min(max(1, len(values) // 20), 200)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i + 1] - sums[max(0, i + 1 - width)]) / min(i + 1, width) for i in range(len(values))]
