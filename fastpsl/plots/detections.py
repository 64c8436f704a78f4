"""Images of PASCAL VOC with boxes and with masks."""

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastpsl.pipelines.datasets.voc.annotations import VOID, palette, read_mask
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.interface.dataset import spread_indices
from fastpsl.pipelines.loader.annotated import read_image
from fastpsl.plots.png import font, write_png

NUM_IMAGES, NUM_COLUMNS, MIN_SCORE = 12, 4, 0.5
_SIDE_PX, _GAP_PX, _LINE_PX = 300, 8, 16
_WHITE, _GREY, _BACK, _BLACK = (255, 255, 255), (150, 150, 150), (64, 64, 64), (0, 0, 0)
Colour = tuple[int, int, int]


def draw_detections(
    path: Path, data: VOC, predictions: Mapping[str, np.ndarray], num_images: int = NUM_IMAGES
) -> Path:
    """Draw images of `data`, evenly spread over it, with their objects and detections.

    Objects are in thin white, difficult ones in grey, and detections in the colour of their class with its
    name. `predictions` are "image" int64 [N], "boxes" float32 [N, 4] in px of the image, "scores" float32
    [N] and "labels" int64 [N] from 0.
    """
    indices = spread_indices(data.num_samples, num_images).tolist()
    tiles = [_tile(data, index, predictions) for index in indices]
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


def _tile(data: VOC, index: int, predictions: Mapping[str, np.ndarray]) -> Image.Image:
    image = Image.fromarray(read_image(data, index).permute(1, 2, 0).numpy())
    scale = _SIDE_PX / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    tile = Image.new("RGB", (_SIDE_PX, _SIDE_PX + _LINE_PX), _BACK)
    tile.paste(image.resize((width, height), Image.Resampling.BILINEAR))
    draw, letters = ImageDraw.Draw(tile), font(12)
    objects = data.objects(index)
    for box, is_difficult in zip(objects.boxes * scale, objects.difficult, strict=True):
        draw.rectangle(_pixels(box), outline=_GREY if is_difficult else _WHITE)
    shown = np.flatnonzero((predictions["image"] == index) & (predictions["scores"] >= MIN_SCORE))
    colours = class_colours(data.num_classes)
    for i in shown[np.argsort(predictions["scores"][shown], kind="stable")]:  # the most confident on top
        label, score = int(predictions["labels"][i]), float(predictions["scores"][i])
        left, top, right, bottom = _pixels(predictions["boxes"][i] * scale)
        draw.rectangle((left, top, right, bottom), outline=colours[label], width=2)
        name = f"{(data.class_names or [])[label]} {score:.2f}"
        length = letters.getlength(name)
        at = (max(0, min(left, width - round(length) - 4)), max(0, top - _LINE_PX))
        draw.rectangle((*at, at[0] + length + 3, at[1] + _LINE_PX - 1), fill=colours[label])
        draw.text((at[0] + 2, at[1] + 1), name, fill=_BLACK, font=letters)
    caption = f"{len(objects.labels)} objects (white), {len(shown)} found (≥ {MIN_SCORE:g})"
    draw.rectangle((0, _SIDE_PX, _SIDE_PX, _SIDE_PX + _LINE_PX), fill=_BACK)
    draw.text((0, _SIDE_PX + 1), f"{data.image_id(index)}: {caption}", fill=_WHITE, font=letters)
    return tile


def _pixels(box: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a box's pixels, at least one pixel in each direction."""
    left, top, right, bottom = np.rint(box).astype(int).tolist()
    return left, top, max(left, right - 1), max(top, bottom - 1)


HEIGHT_PX, GAP_PX, LINE_PX = 150, 8, 18
GROUND, INK = 64, (235, 235, 235)
COLUMNS, _NUM_MASKS = "image, truth, prediction:", 8


def draw_predicted_masks(path: Path, masks: Path, data: VOC, class_names: Sequence[str]) -> Path:
    """Draw `draw_masks` of images of `data`, evenly spread over it, by the predicted `masks`/<id>.png."""
    rows = []
    for index in spread_indices(data.num_samples, _NUM_MASKS).tolist():
        truth, name = data.mask(index), data.image_id(index)
        file = masks / f"{name}.png"
        prediction = read_mask(file, file.read_bytes(), len(class_names) - 1, truth.shape)
        is_known = truth != VOID
        percent_right = 100 * float((prediction == truth)[is_known].mean()) if is_known.any() else 0.0
        pixels = read_image(data, index).permute(1, 2, 0).numpy()
        rows.append(Shown(pixels, truth, prediction, f"{name}: {percent_right:.0f} % of its pixels right"))
    return draw_masks(path, rows, class_names)


class Shown(NamedTuple):
    """An image, uint8 [H, W, 3], with its true and predicted classes, uint8 [H, W], and the line below it."""

    image: np.ndarray
    truth: np.ndarray
    found: np.ndarray
    caption: str


def draw_masks(path: Path, rows: Sequence[Shown], class_names: Sequence[str]) -> Path:
    """Draw image, truth and prediction of each row above its caption, two rows per line, and a legend.

    The background is the first of the class names.
    """
    letters = font(13)
    tiles = [_masked(row, letters) for row in rows]
    classes = np.unique(np.concatenate([np.append(row.truth, row.found) for row in rows]))
    width = 2 * max(tile.width for tile in tiles) + 3 * GAP_PX
    legend = _legend([(n, "void" if n == VOID else class_names[n]) for n in classes.tolist()], width, letters)
    step = HEIGHT_PX + LINE_PX + GAP_PX
    height = -(-len(tiles) // 2) * step + 2 * GAP_PX + legend.height
    sheet = Image.new("RGB", (width, height), (GROUND,) * 3)
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (GAP_PX + i % 2 * (width - GAP_PX) // 2, GAP_PX + i // 2 * step))
    sheet.paste(legend, (0, height - legend.height))
    return write_png(sheet, path)


def _masked(row: Shown, letters: ImageFont.FreeTypeFont) -> Image.Image:
    height, width = row.truth.shape
    size = (max(1, round(width * HEIGHT_PX / height)), HEIGHT_PX)
    tile = Image.new("RGB", (3 * size[0] + GAP_PX, HEIGHT_PX + LINE_PX), (GROUND,) * 3)
    colours = palette()
    for i, image in enumerate((row.image, colours[row.truth], colours[row.found])):
        resampling = Image.Resampling.BILINEAR if i == 0 else Image.Resampling.NEAREST
        tile.paste(Image.fromarray(image).resize(size, resampling), (i * (size[0] + GAP_PX // 2), 0))
    ImageDraw.Draw(tile).text((0, HEIGHT_PX + 1), row.caption, fill=INK, font=letters)
    return tile


def _legend(classes: Sequence[tuple[int, str]], width: int, letters: ImageFont.FreeTypeFont) -> Image.Image:
    """Return a legend of the columns' names and each class's colour and name, on as many lines as needed."""
    places, line = [], 0
    left = 2 * GAP_PX + round(letters.getlength(COLUMNS))
    for number, name in classes:
        entry_width = LINE_PX + round(letters.getlength(name)) + 2 * GAP_PX
        if left + entry_width > width and left > GAP_PX:
            left, line = GAP_PX, line + 1
        places.append((left, line * LINE_PX, number, name))
        left += entry_width
    legend = Image.new("RGB", (width, (line + 1) * LINE_PX + GAP_PX), (GROUND,) * 3)
    draw, colours = ImageDraw.Draw(legend), palette()
    draw.text((GAP_PX, 0), COLUMNS, fill=INK, font=letters)
    for x, y, number, name in places:
        square = (x, y + 2, x + LINE_PX - 5, y + LINE_PX - 3)
        draw.rectangle(square, fill=tuple(colours[number].tolist()), outline=INK)
        draw.text((x + LINE_PX, y), name, fill=INK, font=letters)
    return legend
