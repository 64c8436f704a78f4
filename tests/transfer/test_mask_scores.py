"""Test the scores of masks by hand, and the sheet of images."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastpsl.pipelines.datasets.voc.annotations import mask_png, palette
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.sample.voc import draw_voc
from fastpsl.plots.detections import Shown, draw_masks, draw_predicted_masks
from fastpsl.transfer.segmentation.task import (
    confusion,
    mask_scores,
    require_torchmetrics,
    with_background,
)

NAMES = ("background", "cat", "dog")


def scores(*pairs: tuple[Any, Any], names: tuple[str, ...] = NAMES) -> dict[str, float]:
    """Return the scores of a (truth, prediction) for each image."""
    confusions = [confusion(torch.tensor(p), torch.tensor(t), len(names)).numpy() for t, p in pairs]
    assert all(counts.dtype == np.int64 for counts in confusions)
    return mask_scores(np.stack(confusions), names)


def test_void_pixels_count_for_nothing() -> None:
    """Check the truth 0 0 1 1 . . (. is void) with the prediction 0 1 1 1 0 2.

    Background has 1 of 2 and cat has 2 of 3. The dog was predicted on void alone.
    """
    result = scores(([[0, 0, 1], [1, 255, 255]], [[0, 1, 1], [1, 0, 2]]))
    assert result == pytest.approx(
        {"mIoU": 100 * (1 / 2 + 2 / 3) / 2, "IoU_background": 50.0, "IoU_cat": 200 / 3}
    )


def test_pixels_of_all_images_count_together() -> None:
    """Check that the score is not a mean over images.

    Cat has 1 of 2 in one and 5 of 5 in the other, which is 6 of 7. Background has 1 of 2, then 0 of 0.
    """
    result = scores(([[0, 0, 1]], [[0, 1, 1]]), ([[1] * 5], [[1] * 5]))
    assert result == pytest.approx(
        {"mIoU": 100 * (1 / 2 + 6 / 7) / 2, "IoU_background": 50, "IoU_cat": 600 / 7}
    )


def test_a_class_of_the_truth_that_is_never_found_has_0() -> None:
    result = scores(([[0, 0, 2, 2]], [[0, 0, 0, 0]]))
    assert result == pytest.approx({"mIoU": 25.0, "IoU_background": 50.0, "IoU_dog": 0.0})


def test_a_class_that_is_only_predicted_has_0_and_counts() -> None:
    result = scores(([[0, 0, 0, 0]], [[0, 0, 0, 2]]))
    assert result == pytest.approx({"mIoU": 37.5, "IoU_background": 75.0, "IoU_dog": 0.0})


def test_all_wrong_all_right_and_nothing_to_score() -> None:
    assert scores(([[0, 1], [1, 2]], [[1, 2], [0, 0]])) == pytest.approx(
        {"mIoU": 0.0, "IoU_background": 0.0, "IoU_cat": 0.0, "IoU_dog": 0.0}
    )
    right = [[0, 1], [1, 2]]
    assert scores((right, right)) == pytest.approx(
        {"mIoU": 100.0, "IoU_background": 100.0, "IoU_cat": 100.0, "IoU_dog": 100.0}
    )
    assert scores(([[255, 255]], [[0, 1]])) == {"mIoU": 0.0}


def test_rows_are_the_truth_and_large_counts_are_exact_to_a_ten_thousandth() -> None:
    counts = confusion(torch.tensor([[2, 2, 0]]), torch.tensor([[1, 255, 0]], dtype=torch.uint8), 3)
    assert counts.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    random = np.random.default_rng(0)
    total = random.integers(0, 10**8, (21, 21))
    names = tuple(str(n) for n in range(21))
    result = mask_scores(total[None], names)
    for n in range(21):
        union = total[n].sum() + total[:, n].sum() - total[n, n]
        assert result[f"IoU_{n}"] == pytest.approx(100 * total[n, n] / union, abs=1e-4)


def test_without_torchmetrics_it_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    require_torchmetrics()
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("torchmetrics"):
            raise ImportError("No module named 'torchmetrics'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r'pip install "fastpsl-vision\[transfer\]"') as caught:
        require_torchmetrics()
    assert "\n" not in str(caught.value)


def test_the_sheet_shows_images_truth_and_prediction_in_vocs_colours(tmp_path: Path) -> None:
    truth, prediction = np.zeros((30, 40), np.uint8), np.full((30, 40), 2, np.uint8)
    truth[:, :20], truth[:, 20:22] = 1, 255
    pixels = np.full((30, 40, 3), (10, 200, 30), np.uint8)
    row = Shown(pixels, truth, prediction, "one")
    for num in (1, 3):
        path = draw_masks(tmp_path / "sheet.png", [row] * num, NAMES)
        with Image.open(path) as image:
            sheet = np.asarray(image.convert("RGB"))
        counts = {
            name: (sheet == colour).all(-1).sum()
            for name, colour in zip(
                ("cat", "dog", "void", "picture"), (*palette()[[1, 2, 255]], pixels[0, 0]), strict=True
            )
        }  # fmt: skip
        whole = 150 * 200
        for name, share in (("cat", 0.5), ("dog", 1.0), ("void", 0.05), ("picture", 1.0)):
            assert counts[name] == pytest.approx(num * share * whole, abs=400), (num, name)


def test_a_sheet_of_a_data_set_says_how_much_of_each_image_is_right(tmp_path: Path) -> None:
    root = draw_voc(tmp_path / "VOCdevkit", 2, 3, side_px=48)
    with VOC(root, ("2012_val",), "masks") as data:
        assert with_background(data) == ["background", "cross", "disc", "triangle"]
        for index in range(3):
            (tmp_path / f"{data.image_id(index)}.png").write_bytes(mask_png(data.mask(index)))
        path = draw_predicted_masks(tmp_path / "sheet.png", tmp_path, data, with_background(data))
        with Image.open(path) as image:
            assert image.size[0] > 300
