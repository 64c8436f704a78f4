"""Lightness against CIE's formula in plain loops, and against kornia's L* up to the digits of its matrix."""

import kornia
import numpy as np
import pytest
import torch

from fastpsl.kernels import lab
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.lab import Lightness
from tests.fake_cuda import fake_cuda


def reference(images):
    x = images.double().numpy() / (255 if images.dtype == torch.uint8 else 1)
    out = np.empty((x.shape[0], 1, *x.shape[2:]))
    for b, i, j in np.ndindex(x.shape[0], *x.shape[2:]):
        y = 0.0
        for value, weight in zip(x[b, :, i, j], (0.2126, 0.7152, 0.0722), strict=True):
            y += weight * (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
        # CIE 15's two branches meet at L* = 8: 903.3 is (29/3)^3.
        out[b, 0, i, j] = (116 * y ** (1 / 3) - 16 if y > 216 / 24389 else 24389 / 27 * y) / 100
    return torch.from_numpy(out)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 9, 13), (1, 1, 5), (1, 1, 1)])
def test_equals_the_loop(dtype, shape, make_images, assert_close):
    images = make_images(*shape, dtype)
    out = Lightness()(images, {})
    assert out.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    assert_close(out, reference(images))


def test_dark_pixels_take_the_straight_branches(assert_close):
    ramp = torch.arange(40, dtype=torch.uint8).repeat_interleave(3).view(1, 40, 1, 3).permute(0, 3, 1, 2)
    out = Lightness()(ramp, {})
    assert_close(out, reference(ramp))
    assert out[0, 0, 0, 0] == 0 and out.diff(dim=2).min() > 0


def test_equals_kornia(make_images):
    images = make_images(4, 17, 31, torch.float32)
    expected = kornia.color.rgb_to_lab(images)[:, :1] / 100
    assert (Lightness()(images, {}) - expected).abs().max() < 2e-4


@pytest.mark.parametrize("channel", range(3))
def test_two_percent_of_a_weight_are_seen(channel, monkeypatch, make_images, assert_close):
    images = make_images(2, 9, 13, torch.float32)
    weights = list(lab.WEIGHTS)
    weights[channel] *= 1.02
    monkeypatch.setattr(lab, "WEIGHTS", tuple(weights))
    with pytest.raises(AssertionError):
        assert_close(Lightness()(images, {}), reference(images))


def test_white_is_one_and_black_nought():
    for value in (0.0, 1.0):
        for dtype in (torch.float32, torch.float16):
            assert Lightness()(torch.full((1, 3, 2, 2), value, dtype=dtype), {}).unique().tolist() == [value]


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_layout_and_input_unchanged(batch, layout, make_images):
    images = make_images(batch, 7, 6, torch.float32).contiguous(memory_format=layout)
    before = images.clone()
    out = Lightness()(images, {})
    assert out.shape == (batch, 1, 7, 6) and out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


def test_nothing_is_drawn_and_the_host_never_waits(make_images):
    assert Lightness().draw(Keys(1, 2, np.arange(4, dtype=np.int64))) == {}
    with fake_cuda() as cuda:
        on_device = make_images(2, 5, 5, torch.float16).to(cuda.device)
        with cuda.watched() as record:
            assert Lightness()(on_device, {}).shape == (2, 1, 5, 5)
    assert not record.waits, record.waits
