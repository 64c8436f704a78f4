"""Flip, shift, hole, enlargement and rotations against plain loops, torch and PIL."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.kernels.geometry import (
    AllTurns,
    Enlarge,
    Flip,
    Hole,
    Rotate45,
    Rotate90,
    Shift,
)
from fastpsl.kernels.isotropic import DIAGONAL, ISOTROPIC, margin_px
from fastpsl.kernels.isotropic_loops import isotropic_resize
from fastpsl.kernels.rotation_crops import RotationCrop
from fastpsl.pipelines.decoders.decoder import cannot


def frequency(p):
    return Flip(p).draw(Keys(1, 2, np.arange(250_000, dtype=np.int64)))["flip"].mean()


def assert_frequency(p, expected):
    assert abs(frequency(p) - expected) < 5 * (expected * (1 - expected) / 250_000) ** 0.5


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(7, 32, 32), (1, 5, 9), (3, 1, 1), (0, 4, 4)])
def test_flips_those_drawn(dtype, shape, make_images, as_tensors, assert_close):
    images = make_images(*shape, dtype)
    draw = as_tensors(Flip().draw(Keys(1, 2, np.arange(shape[0], dtype=np.int64))))
    expected = torch.stack(
        [
            x[:, :, list(range(shape[2]))[::-1]] if flip else x
            for x, flip in zip(images, draw["flip"], strict=True)
        ]
        or [torch.empty(3, *shape[1:])]
    )[: shape[0]]
    assert_close(Flip()(images, draw), expected)
    assert shape[0] < 7 or draw["flip"].unique().numel() == 2


def test_probability():
    assert_frequency(0.5, 0.5)
    assert (frequency(0), frequency(1)) == (0, 1)
    with pytest.raises(AssertionError):
        assert_frequency(0.5 * 1.02, 0.5)
    with pytest.raises(ValueError, match="probability 1.5 given; allowed are 0 to 1"):
        Flip(1.5)


def make_draw(shift, num, epoch=0):
    drawn = shift.draw(Keys(3, epoch, np.arange(num)))
    return {name: torch.from_numpy(value) for name, value in drawn.items()}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("height, width, most", [(32, 32, 4), (7, 5, 2), (5, 9, 0), (3, 2, 8)])
def test_equals_torchvisions_pad_and_crop(dtype, height, width, most, make_images):
    images, shift = make_images(6, height, width, dtype), Shift(most)
    draw = make_draw(shift, 6)
    out = shift(images, draw)
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    for image, moved, (top, left) in zip(images, out, draw["shift"].tolist(), strict=True):
        padded = functional.pad(image, [most] * 4)
        assert torch.equal(moved, functional.crop(padded, top, left, height, width))


def test_each_place_is_as_likely_and_both_ways_are_independent():
    places = make_draw(Shift(4), 81_000)["shift"]
    counts = torch.bincount(9 * places[:, 0] + places[:, 1], minlength=81)
    # 1,000 each, with a standard deviation of 31.
    assert len(counts) == 81 and counts.min() > 850 and counts.max() < 1150


def test_a_place_is_the_samples_own():
    shift, indices = Shift(4), np.arange(40)[::-1].copy()
    alone = shift.draw(Keys(3, 0, indices[5:6]))["shift"]
    assert np.array_equal(alone, shift.draw(Keys(3, 0, indices))["shift"][5:6])
    assert not torch.equal(make_draw(shift, 40)["shift"], make_draw(shift, 40, epoch=1)["shift"])


def test_no_images_and_bad_input(make_images):
    assert Shift()(make_images(0, 8, 8, torch.uint8), make_draw(Shift(), 0)).shape == (0, 3, 8, 8)
    with pytest.raises(ValueError, match="a shift of -1 px given; allowed are 0 px and more"):
        Shift(-1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("height, width, share", [(32, 32, 0.5), (33, 33, 0.5), (7, 5, 0.4), (2, 3, 0.5)])
def test_equals_a_plain_loop(dtype, height, width, share, make_images):
    images = make_images(3, height, width, dtype)
    before, expected = images.clone(), images.clone()
    colour = (124, 116, 104) if dtype == torch.uint8 else (0.485, 0.456, 0.406)
    rows, columns = (round(share * side) for side in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    for row in range(top, top + rows):
        for column in range(left, left + columns):
            for channel in range(3):
                expected[:, channel, row, column] = colour[channel]
    out = Hole(share)(images, {})
    assert torch.equal(out, expected) and out.dtype == dtype
    assert torch.equal(images, before)  # because the target is cut from them
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_bad_input_is_one_line():
    images = torch.zeros(1, 3, 8, 8)
    for make, message in (
        (lambda: Hole(0), "hole of 0 of the side given; allowed is 0 < share < 1"),
        (lambda: Hole(float("nan")), "hole of nan of the side given"),
        (lambda: Hole(0.05)(images, {}), "hole of 0.05 of 8 px is 0 px; allowed are 1 to 7 px"),
        (lambda: Hole(0.97)(images, {}), "hole of 0.97 of 8 px is 8 px; allowed are 1 to 7 px"),
        (lambda: Hole(0.5, (0.5,))(images, {}), "0.5,. given for 3 channels"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            make()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "height, width, side, size", [(84, 84, 256, 224), (5, 7, 19, 12), (4, 4, 4, 4), (1, 1, 3, 2)]
)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_equals_torchvisions_resize_and_center_crop(height, width, side, size, batch, make_images):
    images = make_images(batch, height, width, torch.uint8)
    out = Enlarge(side, size)(images, {})
    assert out.dtype == torch.uint8 and out.is_contiguous(memory_format=torch.channels_last)
    assert out.shape == (batch, 3, size, size)
    if batch:
        exact = functional.resize(images.double(), [side, side], antialias=False)
        top = (side - size) // 2
        middle = exact[..., top : top + size, top : top + size]
        assert (out.double() - middle).abs().max() < 0.501  # rounded, not truncated


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_dtypes_are_kept_and_the_input_is_left(dtype, make_images):
    images = make_images(2, 9, 9, dtype)
    before = images.clone()
    out = Enlarge(20, 16)(images, {})
    assert out.dtype == dtype and torch.equal(images, before)
    assert 0 <= out.min() and out.max() <= 1
    assert torch.equal(Enlarge(20, 16)(images[1:], {}), out[1:])


def test_a_middle_that_is_larger_or_nothing_is_refused():
    for size in (0, 9):
        with pytest.raises(ValueError, match=f"a middle of {size} px of 8 px given"):
            Enlarge(8, size)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("side", [1, 2, 7, 32])
def test_equals_numpy(dtype, side, make_images, assert_close):
    images = make_images(8, side, side, dtype)
    turns = torch.arange(8) % 4
    pairs = zip(images, turns.tolist(), strict=True)
    expected = [np.rot90(x.numpy(), k, axes=(1, 2)).copy() for x, k in pairs]
    assert_close(Rotate90()(images, {"turns": turns}), torch.from_numpy(np.stack(expected)))


def test_a_quarter_turn_is_counter_clockwise():
    images = torch.zeros(1, 3, 4, 4)
    images[:, :, 0, 3] = 1  # the top right corner moves to the top left
    assert Rotate90()(images, {"turns": torch.tensor([1])})[0, :, 0, 0].tolist() == [1, 1, 1]


def test_half_turns_of_any_shape(make_images, assert_close):
    images = make_images(2, 5, 9, torch.uint8)
    expected = torch.stack([images[0], torch.from_numpy(images[1].numpy()[:, ::-1, ::-1].copy())])
    assert_close(Rotate90(2)(images, {"turns": torch.tensor([0, 2])}), expected)
    with pytest.raises(ValueError, match="5 x 9 px given to quarter turns"):
        Rotate90(4)(images, {"turns": torch.tensor([0, 2])})


@pytest.mark.parametrize("num, allowed", [(4, [0, 1, 2, 3]), (2, [0, 2])])
def test_draw(num, allowed):
    turns = Rotate90(num).draw(Keys(1, 2, np.arange(100_000, dtype=np.int64)))["turns"]
    values, counts = np.unique(turns, return_counts=True)
    assert values.tolist() == allowed and turns.dtype == np.int64
    assert np.abs(counts / 100_000 - 1 / num).max() < 0.02 / num
    with pytest.raises(ValueError, match="3 rotations given; allowed are 2"):
        Rotate90(3)


@pytest.mark.parametrize("num", [2, 4])
def test_all_turns_are_those_that_may_be_drawn(num, make_images, assert_close):
    """The turns are image by image, and equal Rotate90's with each turn as its draw."""
    images = make_images(3, 7, 7, torch.uint8)
    turns = torch.from_numpy(AllTurns(num).draw(Keys(1, 2, np.arange(3)))["turns"])
    assert turns.tolist() == 3 * [[0, 2] if num == 2 else [0, 1, 2, 3]] and turns.dtype == torch.int64
    expected = Rotate90(num)(images.repeat_interleave(num, 0), {"turns": turns.flatten()})
    assert_close(AllTurns(num)(images, {"turns": turns}), expected)


def test_all_turns_of_other_shapes(make_images):
    assert AllTurns(2)(make_images(2, 5, 9, torch.uint8), {}).shape == (4, 3, 5, 9)
    with pytest.raises(ValueError, match="5 x 9 px given to quarter turns"):
        AllTurns(4)(make_images(2, 5, 9, torch.uint8), {})
    with pytest.raises(ValueError, match="8 rotations given; allowed are 2"):
        AllTurns(8)


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
        points_y = centre_y + np.sin(turn) * x + np.cos(turn) * y
        points = points_y, centre_x + np.cos(turn) * x - np.sin(turn) * y
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
    first, second = (base.boxes(keys(view=view), heights, widths) for view, base in enumerate(bases))
    np.testing.assert_array_equal(first, second)
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
        kinds = np.full((len(boxes), 1), ISOTROPIC, np.int32)
        assert not cannot(np.hstack([boxes, kinds]), size_px, heights, widths).any()
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
