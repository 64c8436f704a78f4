"""Test random crops of an image and its mask: one place for both, their sizes, and which are drawn anew."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys
from fastpsl.pipelines.datasets.voc.annotations import VOID
from fastpsl.transfer.segmentation.task import ScaledCrop


def keys(index: int, epoch: int = 0) -> Keys:
    return Keys(3, epoch, np.array([index], np.int64))


def annotated(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return an image and its mask.

    Red encodes the class of a pixel, 1 left and 2 right of the middle. Green rises downwards.
    """
    mask = torch.ones(height, width, dtype=torch.uint8)
    mask[:, width // 2 :] = 2
    image = torch.stack(
        [mask * 100, (torch.arange(height) * 255 // height)[:, None].repeat(1, width), mask * 0]
    )
    return image.to(torch.uint8), mask


def test_crops_of_image_and_mask_are_the_same_place() -> None:
    crop = ScaledCrop(32, (0.5, 2.0), 0.75)
    flips, heights, firsts = [], [], []
    for index in range(200):
        image, mask = crop(*annotated(40, 60), keys(index))
        assert image.dtype == mask.dtype == torch.uint8 and image.shape[1:] == mask.shape
        assert mask.shape[0] <= 32 and mask.shape[1] <= 32
        near = (image[0].int() - mask.int() * 100).abs() < 30
        assert near.float().mean() > 0.9  # because bilinear and nearest differ along the middle
        if (mask == 1).any() and (mask == 2).any():
            flips.append(int(mask[0, 0]) == 2)
        heights.append(mask.shape[0])
        firsts.append(int(image[1, 0, 0]))
        again = crop(*annotated(40, 60), keys(index))
        assert torch.equal(again[0], image) and torch.equal(again[1], mask)
    assert 0.35 < np.mean(flips) < 0.65 and len(flips) > 150
    assert min(heights) in (16, 17) and max(heights) == 32  # half of the shorter side's 32, then cropped
    assert min(firsts) < 10 and max(firsts) > 120
    others = [crop(*annotated(40, 60), keys(index, epoch=1))[1].shape[0] for index in range(200)]
    assert others != heights


@pytest.mark.parametrize("side", [5, 8, 12, 30])
def test_a_resized_mask_has_the_classes_at_the_middles_of_its_pixels(side: int) -> None:
    mask = torch.arange(side * side, dtype=torch.uint8).view(side, side) % 200
    middles = [int((place + 0.5) * side / 12) for place in range(12)]
    expected = mask[middles][:, middles].tolist()
    mirrored = [row[::-1] for row in expected]
    found = [
        ScaledCrop(12, (1.0, 1.0), 1.0)(mask[None].repeat(3, 1, 1), mask, keys(index))[1].tolist()
        for index in range(8)
    ]
    assert expected in found and mirrored in found and all(one in (expected, mirrored) for one in found)


@pytest.mark.parametrize(("size", "wanted"), [((10, 100), (6, 16)), ((10, 40), (16, 16)), ((90, 9), (16, 6))])
def test_the_longer_side_is_at_most_four_times_the_crops(
    size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    """With a crop of 16 px, 10 x 100 px become 6 x 64 and not 16 x 160."""
    crop = ScaledCrop(16, (1.0, 1.0), 1.0)
    assert [tuple(crop(*annotated(*size), keys(i))[1].shape) for i in range(4)] == [wanted] * 4


def test_a_crop_of_one_class_is_drawn_anew() -> None:
    mask = torch.ones(64, 64, dtype=torch.uint8)
    mask[40:, 40:], mask[:8] = 2, VOID
    image = mask[None].repeat(3, 1, 1)
    shares = {}
    for most in (0.75, 1.0):
        crop, rows = ScaledCrop(32, (2.0, 2.0), most), []
        for index in range(60):
            counts = torch.bincount(crop(image, mask, keys(index))[1].flatten(), minlength=3)
            rows.append([int(counts[1]), int(counts[2])])
        shares[most] = np.mean([max(row) / max(sum(row), 1) <= most and min(row) > 0 for row in rows])
    # A single random crop is rarely mixed so well, but one of up to eleven often is.
    assert shares[0.75] > 0.6 and shares[1.0] > 0.9


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (33, 31)])
def test_odd_images_can_be_cropped(size: tuple[int, int]) -> None:
    image, mask = ScaledCrop(16, (0.5, 2.0), 0.75)(*annotated(*size), keys(0))
    assert image.shape[1:] == mask.shape and 1 <= min(mask.shape) and max(mask.shape) <= 16


def test_a_crop_is_drawn_anew_ten_times_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has eleven places in all, which differ, and the last one is shown."""
    tried: list[Tensor] = []
    monkeypatch.setattr(ScaledCrop, "_is_mixed", lambda crop, mask: tried.append(mask.clone()))
    mask = torch.arange(200, dtype=torch.uint8).repeat(200, 1)
    _, shown = ScaledCrop(20, (10.0, 10.0), 0.75)(mask[None].repeat(3, 1, 1), mask, keys(0))
    assert len(tried) == 11 and len({int(each[0, 0]) for each in tried}) > 5
    assert torch.equal(shown, tried[-1]) or torch.equal(shown, tried[-1].flip(-1))


@pytest.mark.parametrize(
    ("numbers", "is_mixed"),
    [
        ([1] * 11 + [2] * 5, True),
        ([1] * 12 + [2] * 4, False),  # three quarters, and it must be less, as in mmsegmentation
        ([1] * 3 + [2] + [VOID] * 12, False),  # void does not count
        ([0] * 5 + [20] * 3 + [VOID] * 8, True),
        ([7] * 16, False),
        ([7] * 8 + [VOID] * 8, False),
        ([VOID] * 16, False),
    ],
)
def test_a_crop_needs_two_classes_and_less_than_the_largest_share(numbers: list[int], is_mixed: bool) -> None:
    mask = torch.tensor(numbers, dtype=torch.uint8).view(4, 4)
    assert ScaledCrop(4, (1.0, 1.0), 0.75)._is_mixed(mask) == is_mixed
