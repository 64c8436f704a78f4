"""Contact sheets: the images of a batch as the network sees them, with captions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastpsl.pipelines.batch import Batch
from fastpsl.plots.png import write_png

NUM_PICTURES = 16
# Narrower images are enlarged by whole pixels, because 32-px ones and their captions could not be seen.
_MIN_WIDTH_PX = 150
_GAP_PX, _LINE_PX, _FONT_PX = 8, 16, 12


def captions(
    batch: Batch, class_names: Sequence[str] | None = None, of_task: Sequence[str] = ()
) -> list[str]:
    """Return a caption for each sample: its number in the data set, and its label, in words where there are.

    Args:
        of_task: The task's own captions, each below its sample's; an empty one adds no line.
    """
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
    """Write the first `num_pictures` of `pictures` as one PNG, each above its caption.

    Args:
        pictures: float [n, 3, h, w] in [0, 1].
        captions: Of any number of lines. A line that is wider than its image is cut, and ends in "…" then.
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
    write_png(sheet, path)


def _fitted(line: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    kept = line
    while kept and font.getlength(kept if kept == line else kept + "…") > width:
        kept = kept[:-1]
    return kept if kept == line else kept + "…"
