"""Eight rotations: label, base and turns agree; windows fit at any angle and do not depend on it."""

import numpy as np
import pytest
import torch

from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.kernels.geometry import AllTurns, Rotate45
from fastpsl.kernels.isotropic import DIAGONAL, ISOTROPIC, margin_px
from fastpsl.kernels.isotropic_loops import fits_isotropic, isotropic_resize
from fastpsl.kernels.rotation_crops import RotationCrop

NUM = 4000


def keys(num: int = NUM, view: int = 0) -> Keys:
    return Keys(5, 2, np.arange(num, dtype=np.int64), view)


def sizes(num: int = NUM) -> tuple[np.ndarray, np.ndarray]:
    sides = np.random.default_rng(0).integers(50, 900, (2, num)).astype(np.int32)
    return sides[0], sides[1]


def broad(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return an image without any symmetry, so smooth that the kernel changes it little.

    y and x are distances from its centre.
    """
    values = [
        128 + 40 * np.sin(y / 17 + k) + 50 * np.cos(x / 23 - y / 31 + 2 * k) + 0.3 * x for k in range(3)
    ]
    return np.stack(values, -1)


def views(crop: RotationCrop, num: int, height: int, width: int) -> tuple[torch.Tensor, np.ndarray]:
    """Return the smooth image as a decoder crops it, uint8 [num, 3, S, S], and the boxes."""
    y, x = np.mgrid[:height, :width] + 0.5
    pixels = np.rint(broad(y - height / 2, x - width / 2)).astype(np.uint8).reshape(-1)
    boxes = crop.boxes(keys(num), np.full(num, height, np.int32), np.full(num, width, np.int32))
    out = np.empty((num, crop.size_px, crop.size_px, 3), np.uint8)
    for i, base in enumerate(crop.resampling(keys(num))):
        top, left, side, _ = boxes[i].tolist()
        isotropic_resize(pixels, height, width, top, left, side, base == DIAGONAL, out[i])
    return torch.from_numpy(out).permute(0, 3, 1, 2), boxes


def expected(boxes: np.ndarray, labels: np.ndarray, size: int, height: int, width: int) -> np.ndarray:
    """Return the smooth image turned counter-clockwise by 45 degrees times the label; rows go down."""
    out = []
    for (top, left, side, _), label in zip(boxes.tolist(), labels.tolist(), strict=True):
        y, x = (np.mgrid[:size, :size] - (size - 1) / 2) * (side / size)
        turn = np.deg2rad(45 * label)
        centre_y, centre_x = top + side / 2 - height / 2, left + side / 2 - width / 2
        points = (
            centre_y + np.sin(turn) * x + np.cos(turn) * y,
            centre_x + np.cos(turn) * x - np.sin(turn) * y,
        )
        out.append(broad(*points))
    return np.stack(out).transpose(0, 3, 1, 2)


def test_every_label_shows_its_angle(as_tensors) -> None:
    crop, op = RotationCrop(size_px=33), Rotate45()
    images, boxes = views(crop, 64, 131, 157)
    draw = op.draw(keys(64))
    assert set(draw["label"].tolist()) == set(range(8))
    out = op(images, as_tensors(draw))
    assert out.dtype == torch.uint8 and out.is_contiguous(memory_format=torch.channels_last)
    right = np.abs(out.numpy() - expected(boxes, draw["label"], 33, 131, 157)).mean((1, 2, 3))
    wrong = np.abs(out.numpy() - expected(boxes, (draw["label"] + 1) % 8, 33, 131, 157)).mean((1, 2, 3))
    assert right.max() < 1.5
    assert wrong.min() > 4


def test_all_rotations_of_one_decode() -> None:
    """Two views have two bases of one window, whatever their numbers.

    Four turns of each give all rotations, by 90 degrees and by 45 more.
    """
    bases = [RotationCrop(size_px=33, base=0), RotationCrop(size_px=33, base=45)]
    (upright, boxes), (diagonal, same) = (views(crop, 3, 131, 157) for crop in bases)
    np.testing.assert_array_equal(boxes, same)
    heights, widths = sizes()
    np.testing.assert_array_equal(
        bases[0].boxes(keys(), heights, widths), bases[1].boxes(keys(view=1), heights, widths)
    )
    for base, images in enumerate((upright, diagonal)):
        rotations = AllTurns(4)(images, {})
        exact = expected(boxes.repeat(4, 0), np.tile([base, base + 2, base + 4, base + 6], 3), 33, 131, 157)
        assert np.abs(rotations.numpy() - exact).mean((1, 2, 3)).max() < 1.5


def test_one_draw_gives_label_turns_and_base() -> None:
    draw = Rotate45().draw(keys())
    assert draw["label"].dtype == draw["turns"].dtype == np.int64
    counts = np.bincount(draw["label"], minlength=8)
    assert len(counts) == 8 and np.abs(counts / NUM - 1 / 8).max() < 0.02
    np.testing.assert_array_equal(draw["turns"], draw["label"] // 2)
    resampling = RotationCrop().resampling(keys())
    assert resampling.dtype == np.int32
    np.testing.assert_array_equal(resampling, np.where(draw["label"] % 2, DIAGONAL, ISOTROPIC))
    assert (RotationCrop().resampling(keys(view=1)) != resampling).mean() > 0.4
    part = Keys(5, 2, np.array([70, -1, 9], np.int64))
    np.testing.assert_array_equal(RotationCrop().resampling(part)[[0, 2]], resampling[[70, 9]])
    assert RotationCrop() == RotationCrop(size_px=224, share=7 / 8, random=True, base="drawn")
    assert (RotationCrop(base=0).resampling(keys()) == ISOTROPIC).all()
    assert (RotationCrop(base=45).resampling(keys()) == DIAGONAL).all()


@pytest.mark.parametrize("size_px", [32, 224])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_windows_lie_inside_at_any_angle(size_px: int, share: float) -> None:
    heights, widths = sizes()
    for random in (True, False):
        boxes = RotationCrop(size_px, share, random).boxes(keys(), heights, widths)
        assert boxes.dtype == np.int32 and (boxes[:, 2] == boxes[:, 3]).all()
        for height, width, box in zip(heights.tolist(), widths.tolist(), boxes.tolist(), strict=True):
            top, left, side, _ = box
            assert fits_isotropic(height, width, top, left, side, side, size_px)
    # The central window is in the middle, to within a pixel.
    off = boxes[:, :2] + boxes[:, 2:] / 2 - np.stack([heights, widths], 1) / 2
    assert -0.5 <= off.min() and off.max() <= 0  # half a pixel up or left where it cannot be exact


def test_every_place_comes_and_the_angle_has_no_say() -> None:
    crop = RotationCrop(size_px=224)
    boxes = crop.boxes(keys(20_000), np.full(20_000, 375, np.int32), np.full(20_000, 380, np.int32))
    assert (boxes[:, 2] == 215).all()  # the docstring's example
    margin = int(margin_px(215, 224))
    for axis, length in enumerate((375, 380)):
        num_places = length - 215 - 2 * margin + 1
        drawn = words(keys(20_000), Slot.CROP, 2)[:, axis].astype(np.int64) * num_places >> 32
        np.testing.assert_array_equal(boxes[:, axis], margin + drawn)
        for base in (ISOTROPIC, DIAGONAL):
            counts = np.bincount(boxes[crop.resampling(keys(20_000)) == base, axis] - margin)
            assert len(counts) == num_places and counts.min() > 0
            assert np.abs(counts / counts.sum() - 1 / num_places).max() < 0.25 / num_places


def test_samples_views_and_epochs() -> None:
    crop, (heights, widths) = RotationCrop(), sizes(40)
    boxes = crop.boxes(keys(40), heights, widths)
    part = Keys(5, 2, np.array([7, 30], np.int64))
    np.testing.assert_array_equal(crop.boxes(part, heights[[7, 30]], widths[[7, 30]]), boxes[[7, 30]])
    assert (crop.boxes(keys(40, view=1), heights, widths) != boxes).any(1).mean() > 0.9
    assert (crop.boxes(Keys(5, 3, keys(40).indices), heights, widths) != boxes).any(1).mean() > 0.9
    assert crop.boxes(keys(0), heights[:0], widths[:0]).shape == (0, 4)


def test_images_that_are_too_small() -> None:
    for crop in [RotationCrop(), RotationCrop(32, share=0.6), RotationCrop(1)]:
        with pytest.raises(
            ValueError, match=r"40 x 500 px given .* use quarter turns of ordinary crops$"
        ) as error:
            crop.check(40, 500)
        assert "\n" not in str(error.value)
        least = int(str(error.value).split("sides of ")[1].split()[0])
        crop.check(least, least)
        assert f"(fastpsl data write --min-px {least})" in str(error.value)
        with pytest.raises(ValueError, match="leave such images out"):
            crop.check(500, least - 1)
        side = crop.boxes(keys(1), np.array([least], np.int32), np.array([least], np.int32))[0, 2]
        assert side == 16


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size_px": 0}, "crop size 0 px"),
        ({"share": 1.1}, "share 1.1"),
        ({"share": 0.0}, "share 0.0"),
        ({"base": 90}, "base 90 given; allowed are 'drawn', 0 and 45"),
    ],
)
def test_impossible_crops_are_one_line(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        RotationCrop(**wrong)  # type: ignore[arg-type]
    assert "\n" not in str(error.value) and "allowed" in str(error.value)
