"""SobelXY against its definition in plain loops, and the views and networks that use it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fastpsl.kernels import filters
from fastpsl.kernels.colour import ColourDistortion
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.kernels.draws import Keys
from fastpsl.kernels.filters import SOBEL_XY_STD, Sobel, SobelXY
from fastpsl.kernels.geometry import Flip
from fastpsl.kernels.lab import Lightness
from fastpsl.pipelines.views import Input, ViewSpec

SIZES = [(2, 9, 13), (1, 8, 8), (1, 1, 5), (1, 6, 1), (1, 1, 1)]
MEAN, STD = (0.0, 0.0), (SOBEL_XY_STD, SOBEL_XY_STD)
CROP = RandomResizedCrop(48)


def reference(images: torch.Tensor) -> torch.Tensor:
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
def test_equals_the_loop(dtype, shape, make_images, assert_close):
    images = make_images(*shape, dtype)
    out = SobelXY()(images, {})
    assert out.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    assert_close(out, reference(images))


@pytest.mark.parametrize("channel", [0, 1])
def test_two_percent_are_seen(channel, monkeypatch, make_images, assert_close):
    images, gradients = make_images(2, 9, 13, torch.float32), filters.gradients
    factors = torch.tensor([1.02, 1.0] if channel == 0 else [1.0, 1.02]).view(2, 1, 1)
    monkeypatch.setattr(filters, "gradients", lambda grey: factors * gradients(grey))
    with pytest.raises(AssertionError, match="off by"):
        assert_close(SobelXY()(images, {}), reference(images))


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


def test_autocast_does_not_round(make_images, assert_close):
    images = make_images(1, 8, 8, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(SobelXY()(images, {}), reference(images))


def test_deepcluster_s_scale(make_images):
    """DeepCluster's convolutions of normalised pixels, padded with zeros, are minus ours in the frame."""
    images = make_images(2, 12, 11, torch.float32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    down = torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]])
    grey = ((images - mean) / std).mean(1, keepdim=True)
    convolved = functional.conv2d(grey, torch.stack([down.mT, down])[:, None], padding=1)
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
