"""Hole against a plain loop."""

import pytest
import torch

from fastpsl.kernels.geometry import Hole


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


def test_half_of_32_px_is_the_middle_16():
    assert Hole().hidden(32) == slice(8, 24) and Hole().hidden(33) == slice(8, 24)
    out = Hole(0.25, (1.0, 0.0, 0.5))(torch.full((1, 3, 4, 4), 0.2), {})
    assert out[0, :, 1, 1].tolist() == [1.0, 0.0, 0.5] and (out != 0.2).sum() == 3


@pytest.mark.parametrize("batch", [0, 1])
def test_few_images(batch, make_images):
    assert Hole()(make_images(batch, 8, 8, torch.uint8), {}).shape == (batch, 3, 8, 8)


def test_bad_input_is_one_line():
    images = torch.zeros(1, 3, 8, 8)
    for make, message in (
        (lambda: Hole(0), "hole of 0 of the side given; allowed is 0 < share < 1"),
        (lambda: Hole(1.0), "hole of 1.0 of the side given"),
        (lambda: Hole(-0.5), "hole of -0.5 of the side given"),
        (lambda: Hole(float("nan")), "hole of nan of the side given"),
        (lambda: Hole(0.05)(images, {}), "hole of 0.05 of 8 px is 0 px; allowed are 1 to 7 px"),
        (lambda: Hole(0.97)(images, {}), "hole of 0.97 of 8 px is 8 px; allowed are 1 to 7 px"),
        (
            lambda: Hole(0.5, (0.5,))(images, {}),
            "0.5,. given for 3 channels; allowed is one value per channel",
        ),
    ):
        with pytest.raises(ValueError, match=message) as error:
            make()
        assert "\n" not in str(error.value)
