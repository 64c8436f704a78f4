"""Grey against torchvision's rgb_to_grayscale, and the frequency of its draws."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from fastpsl.kernels import colour
from fastpsl.kernels.colour import Grey
from fastpsl.kernels.draws import Keys


def applied_and_expected(dtype, shape, make_images):
    images = make_images(*shape, dtype)
    apply = torch.arange(shape[0]) % 3 != 1
    x = images.to(torch.float32) / (255 if dtype == torch.uint8 else 1)
    expected = torch.where(
        apply[:, None, None, None], functional.rgb_to_grayscale(x, num_output_channels=3), x
    )
    return Grey()(images, {"apply": apply}), expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 17, 23), (1, 32, 32), (2, 1, 1)])
def test_equals_torchvision(dtype, shape, make_images, assert_close):
    assert_close(*applied_and_expected(dtype, shape, make_images))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("channel", range(3))
def test_two_percent_of_a_weight_are_seen(channel, dtype, monkeypatch, make_images, assert_close):
    weights = list(colour.WEIGHTS)
    weights[channel] *= 1.02
    monkeypatch.setattr(colour, "WEIGHTS", tuple(weights))
    with pytest.raises(AssertionError):
        assert_close(*applied_and_expected(dtype, (7, 17, 23), make_images))


def test_probability():
    keys = Keys(1, 2, np.arange(400_000, dtype=np.int64))
    bound = 5 * (0.2 * 0.8 / 400_000) ** 0.5
    assert (
        abs(Grey(0.2).draw(keys)["apply"].mean() - 0.2)
        < bound
        < abs(Grey(0.2 * 1.02).draw(keys)["apply"].mean() - 0.2)
    )
    with pytest.raises(ValueError, match="probability -0.1 given"):
        Grey(-0.1)
