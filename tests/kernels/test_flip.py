"""Flip against reversed columns, and the frequency of its draws."""

import numpy as np
import pytest
import torch

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.geometry import Flip


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
