"""A sheet of images with their objects and a detector's detections."""

import colorsys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.loader.annotated import read_image
from fastpsl.plots.png import write_png

NUM_IMAGES, NUM_COLUMNS, MIN_SCORE = 12, 4, 0.5
_SIDE_PX, _GAP_PX, _LINE_PX, _FONT_PX = 300, 8, 16, 12
_WHITE, _GREY, _BACK, _BLACK = (255, 255, 255), (150, 150, 150), (64, 64, 64), (0, 0, 0)
Colour = tuple[int, int, int]


def draw_detections(
    path: Path,
    data: VOC,
    predictions: Mapping[str, np.ndarray],
    num_images: int = NUM_IMAGES,
    min_score: float = MIN_SCORE,
) -> Path:
    """Draw images of `data`, evenly spread over it, with their objects and detections.

    Objects are in thin white, difficult ones in grey, and detections in the colour of their class with its
    name.

    Args:
        path: File to write.
        data: The images and their objects.
        predictions: "image" int64 [N], "boxes" float32 [N, 4] in px of the image, "scores" float32 [N],
            "labels" int64 [N] from 0.
        num_images: Number of images.
        min_score: Lowest score of detections that are drawn.
    """
    indices = np.linspace(0, data.num_samples - 1, min(num_images, data.num_samples)).round().astype(int)
    font = ImageFont.truetype(findfont("DejaVu Sans"), _FONT_PX)
    tiles = [
        _tile(data, index, predictions, predictions["image"] == index, min_score, font)
        for index in indices.tolist()
    ]
    num_rows, num_columns = -(-len(tiles) // NUM_COLUMNS), min(NUM_COLUMNS, len(tiles))
    step_x, step_y = _SIDE_PX + _GAP_PX, _SIDE_PX + _LINE_PX + _GAP_PX
    sheet = Image.new("RGB", (num_columns * step_x + _GAP_PX, num_rows * step_y + _GAP_PX), _BACK)
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (_GAP_PX + i % NUM_COLUMNS * step_x, _GAP_PX + i // NUM_COLUMNS * step_y))
    return write_png(sheet, path)


def class_colours(num_classes: int) -> list[Colour]:
    """Return a bright RGB colour for each class, evenly spread in hue."""
    hues = [colorsys.hsv_to_rgb(label / num_classes, 0.6, 1.0) for label in range(num_classes)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in hues]


def _tile(
    data: VOC,
    index: int,
    predictions: Mapping[str, np.ndarray],
    is_in_image: np.ndarray,
    min_score: float,
    font: ImageFont.FreeTypeFont,
) -> Image.Image:
    image = Image.fromarray(read_image(data, index).permute(1, 2, 0).numpy())
    scale = _SIDE_PX / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    tile = Image.new("RGB", (_SIDE_PX, _SIDE_PX + _LINE_PX), _BACK)
    tile.paste(image.resize((width, height), Image.Resampling.BILINEAR))
    draw = ImageDraw.Draw(tile)
    objects = data.objects(index)
    for box, is_difficult in zip(objects.boxes * scale, objects.difficult, strict=True):
        draw.rectangle(_pixels(box), outline=_GREY if is_difficult else _WHITE)
    shown = np.flatnonzero(is_in_image & (predictions["scores"] >= min_score))
    colours = class_colours(data.num_classes)
    for i in shown[np.argsort(predictions["scores"][shown], kind="stable")]:  # the most confident on top
        label, score = int(predictions["labels"][i]), float(predictions["scores"][i])
        left, top, right, bottom = _pixels(predictions["boxes"][i] * scale)
        draw.rectangle((left, top, right, bottom), outline=colours[label], width=2)
        name = f"{(data.class_names or [])[label]} {score:.2f}"
        at = (max(0, min(left, width - round(font.getlength(name)) - 4)), max(0, top - _LINE_PX))
        draw.rectangle((*at, at[0] + font.getlength(name) + 3, at[1] + _LINE_PX - 1), fill=colours[label])
        draw.text((at[0] + 2, at[1] + 1), name, fill=_BLACK, font=font)
    caption = (
        f"{data.image_id(index)}: {len(objects.labels)} objects (white), {len(shown)} found (≥ {min_score:g})"
    )
    draw.rectangle((0, _SIDE_PX, _SIDE_PX, _SIDE_PX + _LINE_PX), fill=_BACK)
    draw.text((0, _SIDE_PX + 1), caption, fill=_WHITE, font=font)
    return tile


def _pixels(box: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a box's pixels, at least one pixel in each direction."""
    left, top, right, bottom = np.rint(box).astype(int).tolist()
    return left, top, max(left, right - 1), max(top, bottom - 1)
