"""Enlarge against torchvision's resize and centre crop."""

import pytest
import torch
from torchvision.transforms.v2 import functional

from fastpsl.kernels.geometry import Enlarge


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


def test_a_pixel_by_hand():
    """Two pixels become four, at -1/4, 1/4, 3/4 and 5/4 between them; then the middle two."""
    row = torch.tensor([[[[0, 100], [0, 100]]]], dtype=torch.uint8)
    assert Enlarge(4, 4)(row, {})[0, 0, 0].tolist() == [0, 25, 75, 100]
    assert Enlarge(4, 2)(row, {})[0, 0, 0].tolist() == [25, 75]


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
