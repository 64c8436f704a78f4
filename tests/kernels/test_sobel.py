"""Sobel against its definition in plain loops, and against Kornia's without an epsilon."""

import kornia
import numpy as np
import pytest
import torch

from fastpsl.kernels import filters
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.filters import Sobel, gradient_size


def reference(images):
    x = images.double().numpy() / (255 if images.dtype == torch.uint8 else 1)
    out = np.empty_like(x)
    num, channels, height, width = x.shape
    for b, c, i, j in np.ndindex(num, channels, height, width):

        def at(dy, dx, plane=x[b, c], i=i, j=j):
            return plane[min(max(i + dy, 0), height - 1), min(max(j + dx, 0), width - 1)]

        gx = sum(w * (at(dy, 1) - at(dy, -1)) for dy, w in ((-1, 1), (0, 2), (1, 1))) / 8
        gy = sum(w * (at(1, dx) - at(-1, dx)) for dx, w in ((-1, 1), (0, 2), (1, 1))) / 8
        out[b, c, i, j] = (gx * gx + gy * gy) ** 0.5
    return torch.from_numpy(out)


def all_of(images):
    return {"apply": torch.ones(len(images), dtype=torch.bool)}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(2, 9, 13), (1, 1, 5), (1, 1, 1)])
def test_equals_the_loop(dtype, shape, make_images, assert_close):
    images = make_images(*shape, dtype)
    assert_close(Sobel(1)(images, all_of(images)), reference(images))


def test_equals_kornia(make_images, assert_close):
    images = make_images(4, 17, 31, torch.float32)
    assert_close(Sobel(1)(images, all_of(images)), kornia.filters.sobel(images, normalized=True, eps=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_two_percent_are_seen(dtype, monkeypatch, make_images, assert_close):
    images = make_images(2, 9, 13, dtype)
    monkeypatch.setattr(filters, "gradient_size", lambda x: 1.02 * gradient_size(x))
    with pytest.raises(AssertionError):
        assert_close(Sobel(1)(images, all_of(images)), reference(images))


def test_a_flat_image_has_no_gradient_and_a_step_has_half(assert_close):
    images = torch.full((1, 3, 6, 6), 0.7)
    assert Sobel(1)(images, all_of(images)).abs().max() < 1e-7
    images[:, :, :, :3], images[:, :, :, 3:] = 0, 1
    expected = torch.zeros(1, 3, 6, 6)
    expected[:, :, :, 2:4] = 0.5
    assert_close(Sobel(1)(images, all_of(images)), expected)


def test_only_those_drawn(make_images, assert_close):
    images = make_images(5, 8, 8, torch.float32)
    apply = torch.tensor([True, False, False, True, True])
    out = Sobel()(images, {"apply": apply})
    assert torch.equal(out[~apply], images[~apply])
    assert_close(out[apply], reference(images[apply]))


def test_probability():
    keys = Keys(1, 2, np.arange(400_000, dtype=np.int64))
    bound = 5 * (0.2 * 0.8 / 400_000) ** 0.5
    assert abs(Sobel(0.2).draw(keys)["apply"].mean() - 0.2) < bound
    assert abs(Sobel(0.2 * 1.02).draw(keys)["apply"].mean() - 0.2) > bound
    with pytest.raises(ValueError, match="probability 3 given"):
        Sobel(3)
