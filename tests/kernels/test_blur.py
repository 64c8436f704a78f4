"""Gaussian blur against torchvision's, image by image, each with its own sigma."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.filters import GaussianBlur


def reference(images, draw, kernel_px):
    x = images.to(torch.float32) / (255 if images.dtype == torch.uint8 else 1)
    x = x.clone()
    for row in range(len(x)):
        if draw["apply"][row]:
            x[row] = functional.gaussian_blur(x[row], [kernel_px, kernel_px], [draw["sigma"][row].item()] * 2)
    return x


def make_draw(op, num, as_tensors):
    return as_tensors(op.draw(Keys(5, 1, np.arange(num, dtype=np.int64))))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "kernel_px, shape", [(23, (12, 33, 47)), (3, (5, 2, 3)), (1, (4, 5, 5)), (9, (1, 5, 64))]
)
def test_equals_torchvision(kernel_px, dtype, shape, make_images, as_tensors, assert_close):
    op = GaussianBlur(kernel_px)
    images = make_images(*shape, dtype)
    draw = make_draw(op, shape[0], as_tensors)
    assert_close(op(images, draw), reference(images, draw, kernel_px))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_two_percent_of_sigma_are_seen(factor, dtype, make_images, as_tensors, assert_close):
    op = GaussianBlur(23, p=1)
    images = make_images(12, 33, 47, dtype)
    draw = make_draw(op, 12, as_tensors)
    with pytest.raises(AssertionError):
        assert_close(op(images, draw | {"sigma": draw["sigma"] * factor}), reference(images, draw, 23))


def test_autocast_does_not_round(make_images, as_tensors, assert_close):
    op = GaussianBlur(9, p=1)
    images = make_images(4, 20, 20, torch.float32)
    draw = make_draw(op, 4, as_tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        blurred = op(images, draw)
    assert_close(blurred, reference(images, draw, 9))


def test_draw():
    draw = GaussianBlur(23).draw(Keys(1, 2, np.arange(250_000, dtype=np.int64)))
    assert abs(draw["apply"].mean() - 0.5) < 0.005 and draw["sigma"].dtype == np.float32
    np.testing.assert_allclose([draw["sigma"].min(), draw["sigma"].max()], [0.1, 2], atol=1e-4)
    assert (GaussianBlur(23, (1.5, 1.5)).draw(Keys(1, 2, np.arange(9)))["sigma"] == 1.5).all()
    assert abs(draw["sigma"].mean() - 1.05) < 0.006 and abs(draw["sigma"][draw["apply"]].mean() - 1.05) < 0.01


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((4,), "kernel of 4 px"),
        ((0,), "kernel of 0 px"),
        ((3, (0.0, 1.0)), "blur sigma"),
        ((3, (0.1, 1.0), 1.5), "probability 1.5"),
    ],
)
def test_bad_values(arguments, message):
    with pytest.raises(ValueError, match=f"{message}.* given; allowed"):
        GaussianBlur(*arguments)


def test_too_small_an_image(make_images, as_tensors):
    op = GaussianBlur(23)
    with pytest.raises(ValueError, match="11 x 40 px given to a blur of 23 px; allowed are sides of 12 px"):
        op(make_images(2, 11, 40, torch.uint8), make_draw(op, 2, as_tensors))
