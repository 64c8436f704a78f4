"""Quarter turns against numpy.rot90."""

import numpy as np
import pytest
import torch

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.geometry import AllTurns, Rotate90


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("side", [1, 2, 7, 32])
def test_equals_numpy(dtype, side, make_images, assert_close):
    images = make_images(8, side, side, dtype)
    turns = torch.arange(8) % 4
    expected = [
        np.rot90(x.numpy(), k, axes=(1, 2)).copy() for x, k in zip(images, turns.tolist(), strict=True)
    ]
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
