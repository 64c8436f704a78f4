"""A sheet of images with their true and their predicted masks, in VOC's colours."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from fastpsl.pipelines.datasets.voc.annotations import VOID, palette, read_mask
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.loader.annotated import read_image
from fastpsl.plots.png import write_png

HEIGHT_PX, GAP_PX, LINE_PX, FONT_PX = 150, 8, 18, 13
GROUND, INK = 64, (235, 235, 235)
COLUMNS = "image, truth, prediction:"


def draw_predicted_masks(
    path: Path, masks: Path, data: VOC, class_names: Sequence[str], num_images: int = 8
) -> Path:
    """Draw `draw_masks` of images of `data`, evenly spread over it.

    Args:
        path: File to write.
        masks: Folder with the predicted masks, <id>.png.
        data: The images and their true masks.
        class_names: Names of the classes, the background's first.
        num_images: Largest number of images.
    """
    num_images = min(num_images, data.num_samples)
    rows = []
    for index in np.linspace(0, data.num_samples - 1, num_images).round().astype(int).tolist():
        truth, name = data.mask(index), data.image_id(index)
        file = masks / f"{name}.png"
        prediction = read_mask(file, file.read_bytes(), len(class_names) - 1, truth.shape)
        is_known = truth != VOID
        percent_right = 100 * float((prediction == truth)[is_known].mean()) if is_known.any() else 0.0
        pixels = read_image(data, index).permute(1, 2, 0).numpy()
        rows.append(Shown(pixels, truth, prediction, f"{name}: {percent_right:.0f} % of its pixels right"))
    return draw_masks(path, rows, class_names)


class Shown(NamedTuple):
    """An image with its masks.

    Attributes:
        image: uint8 [H, W, 3].
        truth: True class numbers, uint8 [H, W].
        found: Predicted class numbers, uint8 [H, W].
        caption: Line below the image.
    """

    image: np.ndarray
    truth: np.ndarray
    found: np.ndarray
    caption: str


def draw_masks(path: Path, rows: Sequence[Shown], class_names: Sequence[str]) -> Path:
    """Draw image, truth and prediction of each row above its caption, two rows per line, and a legend.

    Args:
        path: File to write.
        rows: The images with their masks.
        class_names: Names of the classes, the background's first.
    """
    font = ImageFont.truetype(findfont("DejaVu Sans"), FONT_PX)
    tiles = [_tile(row, font) for row in rows]
    classes = np.unique(np.concatenate([np.append(row.truth, row.found) for row in rows]))
    width = 2 * max(tile.width for tile in tiles) + 3 * GAP_PX
    legend = _legend([(n, "void" if n == VOID else class_names[n]) for n in classes.tolist()], width, font)
    step = HEIGHT_PX + LINE_PX + GAP_PX
    height = -(-len(tiles) // 2) * step + 2 * GAP_PX + legend.height
    sheet = Image.new("RGB", (width, height), (GROUND,) * 3)
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (GAP_PX + i % 2 * (width - GAP_PX) // 2, GAP_PX + i // 2 * step))
    sheet.paste(legend, (0, height - legend.height))
    return write_png(sheet, path)


def _tile(row: Shown, font: ImageFont.FreeTypeFont) -> Image.Image:
    height, width = row.truth.shape
    size = (max(1, round(width * HEIGHT_PX / height)), HEIGHT_PX)
    tile = Image.new("RGB", (3 * size[0] + GAP_PX, HEIGHT_PX + LINE_PX), (GROUND,) * 3)
    colours = palette()
    for i, image in enumerate((row.image, colours[row.truth], colours[row.found])):
        resampling = Image.Resampling.BILINEAR if i == 0 else Image.Resampling.NEAREST
        tile.paste(Image.fromarray(image).resize(size, resampling), (i * (size[0] + GAP_PX // 2), 0))
    ImageDraw.Draw(tile).text((0, HEIGHT_PX + 1), row.caption, fill=INK, font=font)
    return tile


def _legend(classes: Sequence[tuple[int, str]], width: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Return a legend of the columns' names and each class's colour and name, on as many lines as needed."""
    places, line = [], 0
    left = 2 * GAP_PX + round(font.getlength(COLUMNS))
    for number, name in classes:
        entry_width = LINE_PX + round(font.getlength(name)) + 2 * GAP_PX
        if left + entry_width > width and left > GAP_PX:
            left, line = GAP_PX, line + 1
        places.append((left, line * LINE_PX, number, name))
        left += entry_width
    legend = Image.new("RGB", (width, (line + 1) * LINE_PX + GAP_PX), (GROUND,) * 3)
    draw, colours = ImageDraw.Draw(legend), palette()
    draw.text((GAP_PX, 0), COLUMNS, fill=INK, font=font)
    for x, y, number, name in places:
        draw.rectangle(
            (x, y + 2, x + LINE_PX - 5, y + LINE_PX - 3), fill=tuple(colours[number].tolist()), outline=INK
        )
        draw.text((x + LINE_PX, y), name, fill=INK, font=font)
    return legend
