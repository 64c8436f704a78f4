"""Gaussian blur and Sobel against torchvision and plain convolutions."""

import kornia
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms.v2 import functional

from fastpsl.kernels import filters
from fastpsl.kernels.colour import ColourDistortion
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.filters import SOBEL_XY_STD, GaussianBlur, Sobel, SobelXY, gradient_size
from fastpsl.kernels.geometry import Flip
from fastpsl.kernels.lab import Lightness
from fastpsl.pipelines.views import Input, ViewSpec


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


def sobel_reference(images):
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
    assert_close(Sobel(1)(images, all_of(images)), sobel_reference(images))


def test_equals_kornia(make_images, assert_close):
    images = make_images(4, 17, 31, torch.float32)
    assert_close(Sobel(1)(images, all_of(images)), kornia.filters.sobel(images, normalized=True, eps=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_two_percent_are_seen(dtype, monkeypatch, make_images, assert_close):
    images = make_images(2, 9, 13, dtype)
    monkeypatch.setattr(filters, "gradient_size", lambda x: 1.02 * gradient_size(x))
    with pytest.raises(AssertionError):
        assert_close(Sobel(1)(images, all_of(images)), sobel_reference(images))


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
    assert_close(out[apply], sobel_reference(images[apply]))


def test_probability():
    keys = Keys(1, 2, np.arange(400_000, dtype=np.int64))
    bound = 5 * (0.2 * 0.8 / 400_000) ** 0.5
    assert abs(Sobel(0.2).draw(keys)["apply"].mean() - 0.2) < bound
    assert abs(Sobel(0.2 * 1.02).draw(keys)["apply"].mean() - 0.2) > bound
    with pytest.raises(ValueError, match="probability 3 given"):
        Sobel(3)


SIZES = [(2, 9, 13), (1, 8, 8), (1, 1, 5), (1, 6, 1), (1, 1, 1)]
MEAN, STD = (0.0, 0.0), (SOBEL_XY_STD, SOBEL_XY_STD)
CROP = RandomResizedCrop(48)


def sobel_xy_reference(images: torch.Tensor) -> torch.Tensor:
    """Compute the gradients by double loops over pixels, in float64."""
    x = images.double().numpy() / (255 if images.dtype == torch.uint8 else 1)
    num, _, height, width = x.shape
    out = np.empty((num, 2, height, width))
    for b in range(num):
        grey = (x[b, 0] + x[b, 1] + x[b, 2]) / 3
        for i in range(height):
            for j in range(width):
                above, below = max(i - 1, 0), min(i + 1, height - 1)
                left, right = max(j - 1, 0), min(j + 1, width - 1)
                gx = gy = 0.0
                for row, weight in ((above, 1), (i, 2), (below, 1)):
                    gx += weight * (grey[row, right] - grey[row, left]) / 8
                for column, weight in ((left, 1), (j, 2), (right, 1)):
                    gy += weight * (grey[below, column] - grey[above, column]) / 8
                out[b, 0, i, j], out[b, 1, i, j] = gx, gy
    return torch.from_numpy(out)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_sobel_xy_equals_the_loop(dtype, shape, make_images, assert_close):
    images = make_images(*shape, dtype)
    out = SobelXY()(images, {})
    assert out.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    assert_close(out, sobel_xy_reference(images))


@pytest.mark.parametrize("channel", [0, 1])
def test_sobel_xy_two_percent_are_seen(channel, monkeypatch, make_images, assert_close):
    images, gradients = make_images(2, 9, 13, torch.float32), filters.gradients
    factors = torch.tensor([1.02, 1.0] if channel == 0 else [1.0, 1.02]).view(2, 1, 1)
    monkeypatch.setattr(filters, "gradients", lambda grey: factors * gradients(grey))
    with pytest.raises(AssertionError, match="off by"):
        assert_close(SobelXY()(images, {}), sobel_xy_reference(images))


def test_signs_and_the_largest_values():
    """A rise to the right or down is positive. A step of 1 gives a half, and reaches one pixel."""
    images = torch.zeros(1, 3, 6, 6)
    images[:, :, :, 3:] = 1
    for turned, (along, across) in ((images, (0, 1)), (images.mT, (1, 0))):
        out = SobelXY()(turned, {})[0]
        line = out[along].mT if along else out[along]
        assert line.tolist() == [[0, 0, 0.5, 0.5, 0, 0]] * 6 and not out[across].any()


@pytest.mark.parametrize("value", [0.0, 0.7, 1.0])
def test_a_flat_image_has_no_frame(value):
    assert SobelXY()(torch.full((2, 3, 5, 7), value), {}).abs().max() < 1e-7


def test_nothing_is_drawn():
    assert SobelXY().draw(Keys(1, 2, np.arange(4, dtype=np.int64))) == {}


def test_sobel_xy_autocast_does_not_round(make_images, assert_close):
    images = make_images(1, 8, 8, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(SobelXY()(images, {}), sobel_xy_reference(images))


def test_deepcluster_s_scale(make_images):
    """DeepCluster's convolutions of normalised pixels, padded with zeros, are minus ours in the frame."""
    images = make_images(2, 12, 11, torch.float32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    down = torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]])
    grey = ((images - mean) / std).mean(1, keepdim=True)
    convolved = F.conv2d(grey, torch.stack([down.mT, down])[:, None], padding=1)
    result = ViewSpec(CROP, (SobelXY(),), MEAN, STD).apply(images, ({},), torch.float32)
    inner = (..., slice(1, -1), slice(1, -1))
    difference = (convolved + result)[inner].abs().max() / convolved[inner].abs().max()
    assert difference < 0.02  # because one std serves three colours


def test_a_view_of_gradients_says_so():
    view = ViewSpec(CROP, (Flip(), SobelXY()), MEAN, STD)
    assert view.input() == Input("SobelXY", MEAN, STD, 48) and view.input().num_channels == 2
    assert Input.from_dict(view.input_record()) == view.input()
    with pytest.raises(ValueError, match="for SobelXY: give 2 values each"):
        ViewSpec(CROP, (SobelXY(),))
    with pytest.raises(ValueError, match="'sobelxy': allowed are RGB, L, Sobel, SobelXY"):
        Input("sobelxy", MEAN, STD)


@pytest.mark.parametrize(
    "ops",
    [
        (Sobel(0.2), SobelXY()),
        (SobelXY(), Sobel(1.0)),
        (Lightness(), SobelXY()),
        (SobelXY(), Lightness()),
        (SobelXY(), Flip()),
        (SobelXY(), ColourDistortion(0.4, 0.4, 0.4, 0.1)),
    ],
    ids=lambda ops: "-".join(type(op).__name__ for op in ops),
)
def test_what_cannot_be_is_refused_in_one_line(ops):
    with pytest.raises(ValueError, match="put it last, without Sobel and Lightness") as error:
        ViewSpec(CROP, ops, MEAN, STD)
    assert "\n" not in str(error.value)


def test_people_see_dark_lines_on_white():
    images = torch.full((2, 3, 48, 48), 30, dtype=torch.uint8)
    images[1, :, :, 24:] = 230
    view = ViewSpec(CROP, (SobelXY(),), MEAN, STD)
    shown = view.denormalise(view.apply(images, ({},), torch.float16))
    assert shown.shape == (2, 3, 48, 48) and shown.dtype == torch.float32
    assert shown[0].min() > 0.999
    assert shown[1, :, :, 23:25].max() == 0 and shown[1, :, :, :23].min() > 0.999


def test_a_network_of_two_channels_reads_them():
    from fastpsl.models.weights import random_weights
    from fastpsl.pipelines.views import center_view, train_view

    input_record = Input("SobelXY", MEAN, STD, 48)
    assert [type(op) for op in train_view(input_record, 48).ops] == [Flip, SobelXY]
    view = center_view(input_record, 48)
    assert view.ops == (SobelXY(),) and view.input() == input_record
    backbone = random_weights("resnet18", 0, input_record).backbone
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == 2
    inputs = view.apply(torch.zeros(2, 3, 48, 48, dtype=torch.uint8), ({},), torch.float32)
    assert backbone.blocks()[0](inputs).isfinite().all()
