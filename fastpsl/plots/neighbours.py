"""A sheet of nearest neighbours: each line shows a query and its neighbours."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import Input, center_view
from fastpsl.plots.png import write_png

NUM_NEIGHBOURS = 7
_SIDE_PX, _FRAME_PX, _GAP_PX, _LINE_PX, _FONT_PX = 112, 4, 6, 16, 12
_GREEN, _RED, _WHITE, _BACK = (64, 190, 90), (225, 70, 60), (235, 235, 235), (48, 48, 48)


def draw_neighbours(path: Path, *arguments: Any, **options: Any) -> Path:
    """Write the image of `neighbour_sheet` to the file `path`."""
    return write_png(neighbour_sheet(*arguments, **options), path)


def neighbour_sheet(
    val: Dataset,
    train: Dataset,
    queries: np.ndarray,
    rows: np.ndarray,
    similarities: np.ndarray,
    loader: Mapping[str, Any],
    *,
    called: str = "validation",
    judged: bool = True,
    whole: bool = False,
) -> Image.Image:
    """Draw queries and their neighbours, framed in green for the query's class and in red for another.

    `queries` are samples of `val`, int64 [N]; `rows` are their neighbours in `train`, int64 [N, K], with
    float `similarities` [N, K]. There are no frames unless `judged`. `called` is a query's caption.
    """
    shown = middles(val, queries, _SIDE_PX, loader, whole)
    neighbours = middles(train, rows, _SIDE_PX, loader, whole)
    labels, others = val.labels()[queries], train.labels()[rows]
    num, k = rows.shape
    num_lines = 2 if max(labels.max(), others.max()) >= 0 else 1
    cell = _SIDE_PX + 2 * _FRAME_PX
    step_x, step_y = cell + _GAP_PX, cell + num_lines * _LINE_PX + _GAP_PX
    sheet = Image.new("RGB", ((k + 1) * step_x + 3 * _GAP_PX, num * step_y + _GAP_PX), _BACK)
    font = ImageFont.truetype(findfont("DejaVu Sans"), _FONT_PX)
    draw = ImageDraw.Draw(sheet)

    def place(left: int, top: int, image: np.ndarray, frame: tuple[int, int, int], *lines: str) -> None:
        draw.rectangle((left, top, left + cell - 1, top + cell - 1), fill=frame)
        sheet.paste(Image.fromarray(image), (left + _FRAME_PX, top + _FRAME_PX))
        for number, line in enumerate(line for line in lines if line):
            at = (left, top + cell + number * _LINE_PX)
            draw.text(at, fitted(line, cell, font), fill=_WHITE, font=font)

    for i in range(num):
        top = _GAP_PX + i * step_y
        name = class_name(val.class_names, labels[i])
        place(_GAP_PX, top, shown[i], _WHITE, name, f"{called} #{queries[i]}")
        for j in range(k):
            frame = _BACK if not judged else _GREEN if others[i, j] == labels[i] else _RED
            name = class_name(train.class_names, others[i, j])
            left = 3 * _GAP_PX + (j + 1) * step_x
            place(left, top, neighbours[i, j], frame, name, f"#{rows[i, j]}  {similarities[i, j]:.3f}")
    return sheet


def class_name(names: Sequence[str] | None, label: int) -> str:
    """Return the class's name, "class N" if it has none, or "" for the label -1."""
    if label < 0:
        return ""
    return names[label] if names is not None and label < len(names) else f"class {label}"


def middles(
    data: Dataset, indices: np.ndarray, size_px: int, loader: Mapping[str, Any], whole: bool = False
) -> np.ndarray:
    """Return the centres of samples, uint8 [*indices.shape, size_px, size_px, 3].

    An index may occur more than once. A sample that cannot be decoded is black.
    """
    unique_indices, places = np.unique(indices, return_inverse=True)
    view = center_view(Input(), size_px, whole)
    with Loader(
        Subset(data, unique_indices),
        [view],
        batch_size_per_rank=len(unique_indices),
        train=False,
        **loader,
        device="cpu",
    ) as opened:
        batches = opened.epoch(0)
        batch = next(batches)
        images = batch.images[0].permute(0, 2, 3, 1).numpy()
        batches.close()
    images = np.where((batch.indices.numpy() < 0)[:, None, None, None], 0, images)
    return images[places.reshape(indices.shape)]


def fitted(line: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """Return the line, cut off at a width of `width` pixels."""
    while line and font.getlength(line) > width:
        line = line[:-1]
    return line
