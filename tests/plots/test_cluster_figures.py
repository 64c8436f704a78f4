"""Test the figures of clusters: which classes are shown, the images of each, their sizes."""

from pathlib import Path

import numpy as np
import pytest

from fastpsl.pipelines.datasets.open import open_data
from fastpsl.plots.clusters import draw_contents, draw_sizes, shown_classes
from tests.pipelines.photos import jpeg
from tests.plots.png_pixels import pixels


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
    for name, colour in colours.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            image = np.full((40, 60, 3), colour, np.uint8)
            (tmp_path / "data" / name / f"{i}.jpg").write_bytes(jpeg(image))
    data = open_data(tmp_path / "data")
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
    (tmp_path / "data").mkdir()
    for i in range(3):
        (tmp_path / "data" / f"{i}.jpg").write_bytes(jpeg(np.full((40, 60, 3), 200, np.uint8)))
    data = open_data(tmp_path / "data")
    size = (tmp_path / "data" / "1.jpg").stat().st_size
    (tmp_path / "data" / "1.jpg").write_bytes(b"\0" * size)
    sheet = pixels(draw_contents(tmp_path / "sheet.png", data, np.zeros(3, int), [0], None, seed=0))
    data.close()
    assert [int(sheet[66, 176 + place * 126 + 60].mean()) for place in range(3)] == pytest.approx(
        [200, 0, 200], abs=5
    )


@pytest.mark.parametrize(
    "sizes", [[3, 2], [5], [427] * 3000, [10_000, 3, 1, *[0] * 500], [0] * 9 + [7], [0] * 99 + [7]]
)
def test_sizes_of_any_kind_are_drawn(tmp_path: Path, sizes: list[int]) -> None:
    chart = pixels(draw_sizes(np.array(sizes), tmp_path / "sizes.png", "test"))
    assert chart.shape == (504, 1320, 3)
    blue, orange = (np.abs(chart - colour).sum(2) < 60 for colour in ((31, 119, 180), (255, 127, 14)))
    for half in (slice(0, 660), slice(660, 1320)):
        assert blue[:, half].sum() > 50 and orange[:, half].sum() > 50
