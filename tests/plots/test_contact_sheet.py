"""The pixels of contact sheets, and their captions."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastpsl.pipelines.loader.batch import Batch
from fastpsl.plots.contact_sheet import captions, save_contact_sheet

BACKGROUND = 64


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


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
    assert captions(batch, ["cat", "dog"], task_captions) == [
        "#17 dog\npermutation 0", "#4\npermutation 8", "#9 class 5\npermutation 2"
    ]  # fmt: skip
    assert captions(batch, None, ["", "grey", ""]) == [
        "#17 class 1",
        "#4\ngrey",
        "#9 class 5",
    ]  # no empty line
