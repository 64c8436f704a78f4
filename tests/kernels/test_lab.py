"""Lab against CIE's formula in plain loops, and against scikit-image's and kornia's rounded matrices."""

import kornia
import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from fastpsl.kernels import lab as module
from fastpsl.kernels.lab import lab, lightness
from tests.fake_cuda import fake_cuda

# For L in [0, 100] and ab in [-108, 98], whose differences of cube roots are multiplied by 500 and 200.
TOLERANCE = 5e-4


def f(t):
    # CIE 15's two branches: 841/108 is (29/6)^2 / 3.
    return t ** (1 / 3) if t > 216 / 24389 else 841 / 108 * t + 16 / 116


def reference(images):
    x = images.double().numpy()
    out = np.empty_like(x)
    for b, i, j in np.ndindex(x.shape[0], *x.shape[2:]):
        r, g, b_ = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in x[b, :, i, j])
        fx = f((0.4124 * r + 0.3576 * g + 0.1805 * b_) / 0.9505)
        fy = f(0.2126 * r + 0.7152 * g + 0.0722 * b_)
        fz = f((0.0193 * r + 0.1192 * g + 0.9505 * b_) / 1.0890)
        out[b, :, i, j] = 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)
    return torch.from_numpy(out)


def cube(step):
    """Return colours of the whole cube, [1, 3, n, 1]."""
    levels = torch.arange(0, 256, step) / 255
    return torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).reshape(1, 3, -1, 1)


@pytest.mark.parametrize("shape", [(2, 9, 13), (1, 1, 5), (1, 1, 1), (0, 4, 4)])
def test_equals_the_loop(shape, make_images):
    images = make_images(*shape, torch.float32)
    out = lab(images)
    assert out.shape == images.shape and out.dtype == torch.float32
    assert torch.allclose(out.double(), reference(images), rtol=0, atol=TOLERANCE)


def test_dark_pixels_take_the_straight_branches():
    colours = cube(3)
    dark = colours[:, :, (colours[0, :, :, 0] < 0.06).all(0)]
    assert dark.shape[2] == 6**3
    assert torch.allclose(lab(dark).double(), reference(dark), rtol=0, atol=TOLERANCE)


def test_equals_scikit_image_and_kornia():
    colours = cube(17)
    result = lab(colours)
    expected = torch.from_numpy(rgb2lab(colours[0, :, :, 0].T.double().numpy())).T[None, :, :, None]
    for other in (expected, kornia.color.rgb_to_lab(colours)):
        assert ((result - other).abs().amax((0, 2, 3)) < torch.tensor([0.01, 0.02, 0.03])).all()


@pytest.mark.parametrize("row", range(3))
def test_two_percent_of_a_weight_are_seen(row, monkeypatch, make_images):
    images = make_images(2, 9, 13, torch.float32)
    matrix = [list(weights) for weights in module.TO_XYZ]
    matrix[row][1] *= 1.02
    monkeypatch.setattr(module, "TO_XYZ", matrix)
    assert not torch.allclose(lab(images).double(), reference(images), rtol=0, atol=TOLERANCE)


def test_known_colours():
    """Greys have no colour, and the primaries have the values of every table of sRGB."""
    greys = (torch.arange(256) / 255).view(1, 1, 256, 1).expand(1, 3, 256, 1)
    out = lab(greys)
    assert out[:, 1:].abs().max() < 1e-4
    assert out[0, 0, 0, 0] == 0 and out[0, 0, -1, 0] == pytest.approx(100, abs=1e-4)
    colours = torch.eye(3)[None, :, :, None]  # red, green, blue
    expected = torch.tensor([[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]])
    assert torch.allclose(lab(colours)[0, :, :, 0].T, expected, rtol=0, atol=0.03)


def test_the_range_that_it_says():
    colours = lab(cube(5))[0, :, :, 0]
    for values, low, high in zip(colours, (0, -86.2, -107.9), (100, 98.3, 94.5), strict=True):
        assert low <= values.min() < low + 0.5 and high - 0.5 < values.max() <= high


def test_its_l_is_lightness(make_images):
    images = make_images(2, 9, 13, torch.float32)
    assert torch.allclose(lab(images)[:, :1], 100 * lightness(images), rtol=0, atol=1e-4)


def test_input_unchanged_autocast_does_not_round_and_the_host_never_waits(make_images):
    images = make_images(2, 5, 7, torch.float32)
    before = images.clone()
    plain = lab(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lab(images), plain)
    assert torch.equal(images, before)
    with fake_cuda() as cuda:
        on_device = images.to(cuda.device)
        with cuda.watched() as record:
            assert lab(on_device).shape == images.shape
    assert not record.waits, record.waits
