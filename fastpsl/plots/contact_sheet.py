"""Contact sheets of views, and of the filters of a first layer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from fastpsl.pipelines.loader.batch import Batch
from fastpsl.plots.png import class_name, font, write_png

NUM_IMAGES = 16
# Narrower images are enlarged by whole pixels, because images of 32 px and their captions would be illegible.
_MIN_WIDTH_PX = 150
_GAP_PX, _LINE_PX = 8, 16


def captions(
    batch: Batch, class_names: Sequence[str] | None = None, of_task: Sequence[str] = ()
) -> list[str]:
    """Return a caption for each sample: its index and its label, as a class name if there is one."""
    lines = []
    for i, (index, label) in enumerate(zip(batch.indices.tolist(), batch.labels.tolist(), strict=True)):
        more = "".join(f"\n{text}" for text in of_task[i : i + 1] if text)
        lines.append(f"#{index} {class_name(class_names, label)}".rstrip() + more)
    return lines


def save_contact_sheet(
    images: Tensor, path: Path, captions: Sequence[str] = (), num_images: int = NUM_IMAGES
) -> None:
    """Write the image of `contact_sheet` to the file `path`."""
    write_png(contact_sheet(images, captions, num_images), path)


def contact_sheet(images: Tensor, captions: Sequence[str] = (), num_images: int = NUM_IMAGES) -> Image.Image:
    """Return images, float [N, 3, H, W] in [0, 1], as one sheet, each above its caption.

    A caption has any number of lines. One wider than its image is cut, and ends in "…".
    """
    shown = (images[:num_images].permute(0, 2, 3, 1) * 255).round().clamp(0, 255).byte().cpu().numpy()
    scale = -(-_MIN_WIDTH_PX // shown.shape[2])
    shown = shown.repeat(scale, axis=1).repeat(scale, axis=2)
    num, height, width = shown.shape[:3]
    texts = [caption.split("\n") for caption in captions[:num]]
    text_px = _LINE_PX * max(map(len, texts), default=0)
    columns = max(1, round(num**0.5))
    rows = -(-num // columns)
    step_y, step_x = height + text_px + _GAP_PX, width + _GAP_PX
    sheet = Image.fromarray(np.full((rows * step_y + _GAP_PX, columns * step_x + _GAP_PX, 3), 64, np.uint8))
    draw, letters = ImageDraw.Draw(sheet), font(12)
    for i, image in enumerate(shown):
        top, left = i // columns * step_y + _GAP_PX, i % columns * step_x + _GAP_PX
        sheet.paste(Image.fromarray(image), (left, top))
        for number, line in enumerate(texts[i] if i < len(texts) else ()):
            at = (left, top + height + 1 + number * _LINE_PX)
            draw.text(at, _fitted(line, width, letters), fill=(235, 235, 235), font=letters)
    return sheet


def _fitted(line: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    prefix = line
    while prefix and font.getlength(prefix if prefix == line else prefix + "…") > width:
        prefix = prefix[:-1]
    return prefix if prefix == line else prefix + "…"


_FILTER_PX, _FILTER_GAP, _FILTER_BACK = 48, 4, 48


def draw_filters(network: nn.Module, path: Path) -> Path:
    """Draw the weights of the first convolution, [out, in, k, k], with one tile per filter.

    Filters of three input channels are drawn in colour. Those of others are drawn in grey, with the channels
    side by side (two channels: gradients along x and y). Each filter is scaled by its own largest absolute
    weight: grey is 0, and white and black are plus and minus that weight.

    Raises:
        ValueError: The network has no convolution.
    """
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise ValueError(
            "the network has no convolution, so no filters to draw: "
            "give labels.npz of the run instead of the run"
        )
    weights = first.weight.detach().cpu().float().numpy()
    weights = weights / np.maximum(np.abs(weights).max((1, 2, 3), keepdims=True), 1e-12)
    values = np.rint(127.5 + 127.5 * weights).astype(np.uint8).transpose(0, 2, 3, 1)
    num, height, width, channels = values.shape
    if channels != 3:
        parts = [np.repeat(values[..., c : c + 1], 3, axis=3) for c in range(channels)]
        values, width = np.concatenate(parts, axis=2), width * channels
    scale = max(1, round(_FILTER_PX / height))
    tiles = values.repeat(scale, axis=1).repeat(scale, axis=2)
    step_y, step_x = height * scale + _FILTER_GAP, width * scale + _FILTER_GAP
    columns = max(1, round((num * step_y / step_x) ** 0.5))
    rows = -(-num // columns)
    sheet = np.full((rows * step_y + _FILTER_GAP, columns * step_x + _FILTER_GAP, 3), _FILTER_BACK, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * step_y + _FILTER_GAP, i % columns * step_x + _FILTER_GAP
        sheet[top : top + len(tile), left : left + tile.shape[1]] = tile
    return write_png(Image.fromarray(sheet), path)
