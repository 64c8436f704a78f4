"""Shift against torchvision's pad and crop."""

import numpy as np
import pytest
import torch
from torchvision.transforms import functional

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.geometry import Shift


def make_draw(shift, num, epoch=0):
    return {
        name: torch.from_numpy(value) for name, value in shift.draw(Keys(3, epoch, np.arange(num))).items()
    }


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("height, width, most", [(32, 32, 4), (7, 5, 2), (5, 9, 0), (3, 2, 8)])
def test_equals_torchvisions_pad_and_crop(dtype, height, width, most, make_images):
    images, shift = make_images(6, height, width, dtype), Shift(most)
    draw = make_draw(shift, 6)
    out = shift(images, draw)
    assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
    for image, moved, (top, left) in zip(images, out, draw["shift"].tolist(), strict=True):
        assert torch.equal(
            moved, functional.crop(functional.pad(image, [most] * 4), top, left, height, width)
        )


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
