"""Test sheets: images and captions, first filters, detections, and the images of clusters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastpsl.pipelines.datasets.open import open_data
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.embedded.draw_voc import draw_voc
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.plots.clusters import draw_contents, draw_sizes, shown_classes
from fastpsl.plots.contact_sheet import captions, draw_filters, save_contact_sheet
from fastpsl.plots.detections import class_colours, draw_detections
from tests.pipelines.photos import jpeg
from tests.pipelines.written import tree
from tests.plots.png_pixels import pixels

BACKGROUND = 64


def test_a_contact_sheet_holds_the_images_as_they_are(tmp_path: Path) -> None:
    for num, columns, rows in ((1, 1, 1), (3, 2, 2), (40, 4, 4)):
        images = torch.rand(num, 3, 20, 151)
        save_contact_sheet(images, tmp_path / "s.png")
        sheet = pixels(tmp_path / "s.png")
        assert sheet.shape == (rows * 28 + 8, columns * 159 + 8, 3)  # 16 images at most, gaps of 8 px
        expected = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for i in range(min(num, 16)):
            top, left = i // columns * 28 + 8, i % columns * 159 + 8
            assert (sheet[top : top + 20, left : left + 151] == expected[i]).all()
        assert (sheet[:8] == BACKGROUND).all() and (sheet[28:36] == BACKGROUND).all()


def test_small_images_are_enlarged_by_whole_pixels(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 32, 32)
    save_contact_sheet(images, tmp_path / "s.png")
    shown = pixels(tmp_path / "s.png")[8:-8, 8:-8]
    assert shown.shape == (160, 160, 3)
    expected = (images[0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert (shown[2::5, 2::5] == expected).all() and (shown[:5, :5] == expected[0, 0]).all()


def test_captions_stand_below_their_images_and_within_their_width(tmp_path: Path) -> None:
    texts = ["#1 cat\npermutation 3", "#2 " + "long name " * 20, "#3 größe"]
    save_contact_sheet(torch.zeros(3, 3, 20, 200), tmp_path / "s.png", texts)
    sheet = pixels(tmp_path / "s.png")
    assert sheet.shape == (2 * (20 + 32 + 8) + 8, 2 * 208 + 8, 3)  # two lines of 16 below each
    for i, num_lines in enumerate((2, 1, 1)):
        top, left = i // 2 * 60 + 28, i % 2 * 208 + 8
        for line in range(2):
            text = sheet[top + 16 * line : top + 16 * (line + 1), left : left + 200]
            assert (text != BACKGROUND).any() == (line < num_lines)
        assert (sheet[top : top + 32, left + 200 : left + 208] == BACKGROUND).all()  # cut, not overflowing


def batch_of(indices: list[int], labels: list[int]) -> Batch:
    return Batch([], [], torch.tensor(indices), torch.tensor(labels), 0, 0)


def test_captions_name_sample_class_and_what_the_task_drew() -> None:
    batch = batch_of([17, 4, 9], [1, -1, 5])
    assert captions(batch, ["cat", "dog"]) == ["#17 dog", "#4", "#9 class 5"]
    assert captions(batch) == ["#17 class 1", "#4", "#9 class 5"]
    task_captions = ["permutation 0", "permutation 8", "permutation 2"]
    expected = ["#17 dog\npermutation 0", "#4\npermutation 8", "#9 class 5\npermutation 2"]
    assert captions(batch, ["cat", "dog"], task_captions) == expected
    assert captions(batch, None, ["", "grey", ""]) == ["#17 class 1", "#4\ngrey", "#9 class 5"]


def tiles(path: Path, num: int, columns: int, height: int, width: int) -> list[np.ndarray]:
    sheet = pixels(path)
    assert sheet.shape[:2] == (-(-num // columns) * (height + 4) + 4, columns * (width + 4) + 4)
    places = [(i // columns * (height + 4) + 4, i % columns * (width + 4) + 4) for i in range(num)]
    return [sheet[top : top + height, left : left + width] for top, left in places]


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_filters_are_the_weights(tmp_path: Path, channels: int) -> None:
    torch.manual_seed(1)
    first = nn.Conv2d(channels, 6, (4, 3))
    network = nn.Sequential(nn.Sequential(nn.BatchNorm2d(channels), first), nn.Conv2d(6, 2, 1))
    path = draw_filters(network, tmp_path / "filters.png")
    weights: Any = first.weight.detach().numpy()
    side_by_side = 1 if channels == 3 else channels
    columns = max(1, round((6 * 52 / (36 * side_by_side + 4)) ** 0.5))
    for number, tile in enumerate(tiles(path, 6, columns, 48, 36 * side_by_side)):
        max_weight = np.abs(weights[number]).max()
        for c in range(channels):
            for y in range(4):
                for x in range(3):
                    value = 127.5 * (1 + weights[number, c, y, x] / max_weight)
                    left = 12 * x if channels == 3 else 36 * c + 12 * x
                    square = tile[12 * y : 12 * y + 12, left : left + 12]
                    shown = square[..., c] if channels == 3 else square
                    assert np.abs(shown - value).max() <= 0.51


def test_filters_of_nothing(tmp_path: Path) -> None:
    zero = nn.Conv2d(3, 4, 3)
    nn.init.zeros_(zero.weight)
    assert np.isin(pixels(draw_filters(zero, tmp_path / "zero.png")), (48, 128)).all()
    with pytest.raises(ValueError, match="no convolution"):
        draw_filters(nn.Linear(3, 4), tmp_path / "none.png")


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


def test_which_classes_are_shown() -> None:
    """Classes that fill a row come first, in the order of entropy, then of size; empty ones are left out."""
    sizes = np.array([50, 9, 8, 0, 30, 9, 1])
    entropies = np.array([0.5, 0.2, 0.0, np.nan, 0.2, np.nan, 0.0])
    assert shown_classes(sizes, entropies).tolist() == [4, 1, 0, 5, 2, 6]
    assert shown_classes(sizes, None).tolist() == [0, 4, 1, 5, 2, 6]
    assert shown_classes(np.full(3000, 400), np.linspace(1, 0, 3000)).tolist() == list(range(2999, 2989, -1))


def test_a_row_shows_its_class(tmp_path: Path) -> None:
    """Class 1 has plain red images; class 0 has blue ones, one of them with another true class."""
    colours = {"sea": (20, 30, 200), "fire": (200, 30, 20)}
    images = {name: jpeg(np.full((40, 60, 3), colour, np.uint8)) for name, colour in colours.items()}
    files = {f"{name}/{i}.jpg": image for name, image in images.items() for i in range(4)}
    data = open_data(tree(tmp_path / "data", files))
    assert data.class_names == ["fire", "sea"]
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 1])
    entropies = np.array([0.0, 0.5])
    sheet = pixels(draw_contents(tmp_path / "sheet.png", data, labels, [1, 0], entropies, seed=0))
    data.close()
    cell = 112 + 2 * 4
    for row, expected in enumerate(([*["fire"] * 4, "sea"], ["sea"] * 3)):
        for place, name in enumerate(expected):
            left, top = 176 + place * 126, 6 + row * 142
            middle = sheet[top + cell // 2, left + cell // 2]
            assert np.abs(middle - colours[name]).max() < 6
            green = sheet[top + 1, left + 1]
            assert (green[1] > green[0]) == (name == expected[0])
        assert (sheet[6 + row * 142 + 60, 176 + len(expected) * 126 + 60] == 48).all()  # no picture there


def test_an_image_that_cannot_be_decoded_is_black(tmp_path: Path) -> None:
    image = jpeg(np.full((40, 60, 3), 200, np.uint8))
    data = open_data(tree(tmp_path / "data", {f"{i}.jpg": image for i in range(3)}))
    (tmp_path / "data" / "1.jpg").write_bytes(bytes(len(image)))
    sheet = pixels(draw_contents(tmp_path / "sheet.png", data, np.zeros(3, int), [0], None, seed=0))
    data.close()
    middles = [int(sheet[66, 176 + place * 126 + 60].mean()) for place in range(3)]
    assert middles == pytest.approx([200, 0, 200], abs=5)


@pytest.mark.parametrize(
    "sizes", [[3, 2], [5], [427] * 3000, [10_000, 3, 1, *[0] * 500], [0] * 9 + [7], [0] * 99 + [7]]
)
def test_sizes_of_any_kind_are_drawn(tmp_path: Path, sizes: list[int]) -> None:
    chart = pixels(draw_sizes(np.array(sizes), tmp_path / "sizes.png", "test"))
    assert chart.shape == (504, 1320, 3)
    blue, orange = (np.abs(chart - colour).sum(2) < 60 for colour in ((31, 119, 180), (255, 127, 14)))
    for half in (slice(0, 660), slice(660, 1320)):
        assert blue[:, half].sum() > 50 and orange[:, half].sum() > 50
