"""A sheet of nearest neighbours: each line shows a query and its neighbours."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import Input, center_view
from fastpsl.plots.png import class_name, font, write_png

NUM_NEIGHBOURS = 7
SIDE_PX, FRAME_PX, GAP_PX, LINE_PX = 112, 4, 6, 16
CELL_PX = SIDE_PX + 2 * FRAME_PX
GREEN, RED, WHITE, BACK = (64, 190, 90), (225, 70, 60), (235, 235, 235), (48, 48, 48)


class Sheet:
    """A sheet of framed images with lines of text."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), BACK)
        self._draw, self._font = ImageDraw.Draw(self.image), font(12)

    def place(self, left: int, top: int, image: np.ndarray, frame: tuple[int, int, int], *lines: str) -> None:
        """Put an image of SIDE_PX with a frame, and below it the lines that are not empty."""
        self._draw.rectangle((left, top, left + CELL_PX - 1, top + CELL_PX - 1), fill=frame)
        self.image.paste(Image.fromarray(image), (left + FRAME_PX, top + FRAME_PX))
        for number, line in enumerate(line for line in lines if line):
            self.write(left, top + CELL_PX + number * LINE_PX, line, CELL_PX)

    def write(self, left: int, top: int, line: str, width: int) -> None:
        """Write a line, cut off at a width of `width` pixels."""
        while line and self._font.getlength(line) > width:
            line = line[:-1]
        self._draw.text((left, top), line, fill=WHITE, font=self._font)


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
    shown = middles(val, queries, SIDE_PX, loader, whole)
    neighbours = middles(train, rows, SIDE_PX, loader, whole)
    labels, others = val.labels()[queries], train.labels()[rows]
    num, k = rows.shape
    num_lines = 2 if max(labels.max(), others.max()) >= 0 else 1
    step_x, step_y = CELL_PX + GAP_PX, CELL_PX + num_lines * LINE_PX + GAP_PX
    sheet = Sheet((k + 1) * step_x + 3 * GAP_PX, num * step_y + GAP_PX)
    for i in range(num):
        top = GAP_PX + i * step_y
        name = class_name(val.class_names, labels[i])
        sheet.place(GAP_PX, top, shown[i], WHITE, name, f"{called} #{queries[i]}")
        for j in range(k):
            frame = BACK if not judged else GREEN if others[i, j] == labels[i] else RED
            name = class_name(train.class_names, others[i, j])
            left = 3 * GAP_PX + (j + 1) * step_x
            words = f"#{rows[i, j]}  {similarities[i, j]:.3f}"
            sheet.place(left, top, neighbours[i, j], frame, name, words)
    return sheet.image


def middles(
    data: Dataset, indices: np.ndarray, size_px: int, loader: Mapping[str, Any], whole: bool = False
) -> np.ndarray:
    """Return the centres of samples, uint8 [*indices.shape, size_px, size_px, 3].

    An index may occur more than once. A sample that cannot be decoded is black.
    """
    unique_indices, places = np.unique(indices, return_inverse=True)
    view = center_view(Input(), size_px, whole)
    subset, num = Subset(data, unique_indices), len(unique_indices)
    with (
        Loader(subset, [view], batch_size_per_rank=num, train=False, **loader, device="cpu") as opened,
        closing(opened.epoch(0)) as batches,
    ):
        batch = next(batches)
    images = batch.images[0].permute(0, 2, 3, 1).numpy()
    images = np.where((batch.indices.numpy() < 0)[:, None, None, None], 0, images)
    return images[places.reshape(indices.shape)]
