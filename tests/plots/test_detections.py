"""The sheet of detections: boxes lie where they should, in the image's scale, and unsure ones are
left out.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.sample.voc import draw_voc
from fastpsl.plots.detections import class_colours, draw_detections

CELL_X, CELL_Y, LEFT = 308, 324, 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> VOC:
    folder = draw_voc(tmp_path_factory.mktemp("drawn") / "VOCdevkit", 2, 5, side_px=64)
    return VOC(folder, ("2007_test",), "boxes")


def predictions(*rows: tuple[int, list[float], int, float]) -> dict[str, np.ndarray]:
    return {
        "image": np.array([row[0] for row in rows], np.int64),
        "boxes": np.array([row[1] for row in rows], np.float32).reshape(-1, 4),
        "labels": np.array([row[2] for row in rows], np.int64),
        "scores": np.array([row[3] for row in rows], np.float32),
    }


def tile(path: Path, index: int) -> np.ndarray:
    with Image.open(path) as image:
        sheet = np.asarray(image)
    top, left = LEFT + index // 4 * CELL_Y, LEFT + index % 4 * CELL_X
    return sheet[top : top + 300, left : left + 300].astype(int)


def test_boxes_lie_where_they_should(data: VOC, tmp_path: Path) -> None:
    row = data.rows(np.array([4]))
    height, width = int(row.height[0]), int(row.width[0])
    box = [0.25 * width, 0.5 * height, 0.75 * width, 0.9 * height]
    sure, unsure = (4, box, 1, 0.9), (0, [10.0, 10.0, 40.0, 40.0], 2, 0.4)
    path = draw_detections(tmp_path / "sheet.png", data, predictions(sure, unsure))
    with Image.open(path) as image:
        assert image.size == (4 * CELL_X + LEFT, 2 * CELL_Y + LEFT)
    green = class_colours(3)[1]
    green_pixels = np.argwhere((tile(path, 4) == green).all(2))
    scale = 300 / max(height, width)
    edges = np.array([0.25 * width, 0.9 * height, 0.75 * width]) * scale
    green_edges = [green_pixels[:, 1].min(), green_pixels[:, 0].max() + 1, green_pixels[:, 1].max() + 1]
    assert green_edges == pytest.approx(edges, abs=1)  # its name stands above it
    assert not any((tile(path, 0) == colour).all(2).any() for colour in class_colours(3))
    assert (tile(path, 0) == 255).all(2).any()  # an annotated object


def test_few_images_and_none_found(data: VOC, tmp_path: Path) -> None:
    path = draw_detections(tmp_path / "sheet.png", data, predictions(), num_images=2)
    with Image.open(path) as image:
        assert image.size == (2 * CELL_X + LEFT, CELL_Y + LEFT)


def test_colours_differ() -> None:
    assert len(set(class_colours(20))) == 20
