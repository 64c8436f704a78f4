"""The operations by Kornia's functions, as `--augment-backend kornia` runs them.

The operations define the values. Each function here has those of its operation within 1e-5, from the same
draws. docs/explanation/one_decode.md has a table of the differences, which
tests/kernels/test_by_kornia.py measures. No function here makes the host wait for a GPU. Kornia's
`spatial_gradient` and `gaussian_blur2d` do, so their filter is called with weights of the device.

Importing this module imports Kornia, which takes 0.4 s.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from kornia.color import rgb_to_grayscale, rgb_to_linear_rgb
from kornia.enhance import add_weighted, adjust_hue, solarize
from kornia.enhance import normalize as kornia_normalize
from kornia.filters import filter2d_separable
from kornia.geometry.transform import hflip, remap, resize, rot180, vflip
from torch import Tensor

from fastpsl.kernels import colour, geometry, lab
from fastpsl.kernels.colour import ColourDistortion, Grey, Solarise
from fastpsl.kernels.filters import Sobel, SobelXY
from fastpsl.kernels.lab import Lightness
from fastpsl.kernels.normalise import check_mean_and_std, filled, finish, per_sample, result_dtype, to_float32
from fastpsl.kernels.normalise import normalise as defined_normalise

Draw = Mapping[str, Tensor]


def apply(op: Any, images: Tensor, draw: Draw) -> Tensor:
    """Apply an operation by Kornia if it has an equal function, else by its definition."""
    form = FORMS.get(type(op))
    return form(op, images, draw) if form and len(images) else op(images, draw)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Return what `kernels.normalise.normalise` returns, within rounding."""
    if not len(images):
        return defined_normalise(images, mean, std, dtype)
    check_mean_and_std(mean, std, images.shape[1])
    x = kornia_normalize(to_float32(images), filled(mean, images.device), filled(std, images.device))
    return finish(x, dtype)


def _flip(op: geometry.Flip, images: Tensor, draw: Draw) -> Tensor:
    return finish(torch.where(per_sample(draw["flip"]), hflip(images), images), images.dtype)


def _turn(op: geometry.Rotate90 | geometry.Rotate45, images: Tensor, draw: Draw) -> Tensor:
    num, turns = getattr(op, "num", 4), draw["turns"]
    geometry.check_square(images.shape[-2], images.shape[-1], num)
    x = torch.where(per_sample(turns >= 2), rot180(images), images)
    if num == 4:
        x = torch.where(per_sample(turns % 2 == 1), vflip(x.transpose(-1, -2)), x)
    return finish(x, images.dtype)


def _all_turns(op: geometry.AllTurns, images: Tensor, draw: Draw) -> Tensor:
    geometry.check_square(images.shape[-2], images.shape[-1], op.num)
    turned = [images, vflip(images.transpose(-1, -2)), rot180(images), hflip(images.transpose(-1, -2))]
    return finish(torch.stack(turned[:: 4 // op.num], 1).flatten(0, 1), images.dtype)


def _shift(op: geometry.Shift, images: Tensor, draw: Draw) -> Tensor:
    # At whole pixels the nearest one is exact; `translate` copies from the host before Kornia 0.9.
    height, width = images.shape[-2:]
    tops, lefts = (draw["shift"] - op.max_px)[:, :, None, None].unbind(1)
    y = (torch.arange(height, device=images.device)[:, None] + tops + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=images.device) + lefts + 0.5) * (2 / width) - 1
    x, y = torch.broadcast_tensors(x, y)
    return finish(_sampled(images.to(torch.float32), x, y, "nearest", "zeros"), images.dtype)


def _enlarge(op: geometry.Enlarge, images: Tensor, draw: Draw) -> Tensor:
    return op.middle(resize(images.to(torch.float32), (op.side_px, op.side_px)), images.dtype)


def _warp_pair(op: geometry.WarpPair, images: Tensor, draw: Draw) -> Tensor:
    def sample(x: Tensor, grid: Tensor) -> Tensor:
        return _sampled(x, grid[..., 0], grid[..., 1], "bilinear", "border")

    return op.pairs(images, draw, sample)


def _sampled(images: Tensor, x: Tensor, y: Tensor, mode: str, padding: str) -> Tensor:
    return remap(images, x, y, mode, padding, align_corners=False, normalized_coordinates=True)


def _colour(op: ColourDistortion, images: Tensor, draw: Draw) -> Tensor:
    return op.distorted(images, draw, _luma, _mixed, _shift_hue)


def _luma(x: Tensor) -> Tensor:
    # Kornia's own weights, 0.299 of red, are off by 1e-4 from torchvision's. So are its contrast and
    # saturation, which take no others.
    return rgb_to_grayscale(x, filled(colour.WEIGHTS, x.device))


def _mixed(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    # Kornia before 0.9 asks for weights of the images' shape, and copies numbers to the GPU.
    weight, other_weight, nothing = (each.expand_as(x) for each in (share, 1 - share, x.new_zeros(())))
    return add_weighted(x, weight, other.expand_as(x), other_weight, nothing).clamp(0, 1)


def _shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    return adjust_hue(x, 2 * math.pi * turns)


def _grey(op: Grey, images: Tensor, draw: Draw) -> Tensor:
    x = to_float32(images)
    return _where_due(draw, _luma(x), x, images)


def _solarise(op: Solarise, images: Tensor, draw: Draw) -> Tensor:
    x = to_float32(images)
    return _where_due(draw, solarize(x, x.new_full((), op.threshold)), x, images)


def _sobel(op: Sobel, images: Tensor, draw: Draw) -> Tensor:
    x = to_float32(images)
    gx, gy = _gradients(x)
    return _where_due(draw, torch.sqrt(gx * gx + gy * gy), x, images)


def _sobel_xy(op: SobelXY, images: Tensor, draw: Draw) -> Tensor:
    # Of three channels, because a GPU would filter a single one in TF32.
    means = [gradient.mean(1, keepdim=True) for gradient in _gradients(to_float32(images))]
    return finish(torch.cat(means, 1), result_dtype(images))


def _gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    steps = torch.arange(-1, 2, device=x.device, dtype=torch.float32)[None]
    across, smooth = steps / 2, (2 - steps.abs()) / 4  # [-1 0 1] / 2 and [1 2 1] / 4
    x = x.contiguous()
    with torch.autocast(x.device.type, enabled=False):  # because it would round the convolutions to half
        return (
            filter2d_separable(x, across, smooth, border_type="replicate"),
            filter2d_separable(x, smooth, across, border_type="replicate"),
        )


def _lightness(op: Lightness, images: Tensor, draw: Draw) -> Tensor:
    # Kornia's rgb_to_lab is off by 8e-5, because its matrix has six digits.
    light = rgb_to_grayscale(rgb_to_linear_rgb(to_float32(images)), filled(lab.WEIGHTS, images.device))
    return finish(lab.of_luminance(light), result_dtype(images))


def _where_due(draw: Draw, changed: Tensor, x: Tensor, images: Tensor) -> Tensor:
    return finish(torch.where(per_sample(draw["apply"]), changed, x), result_dtype(images))


# The definition of GaussianBlur is Kornia's filter itself. JigsawTiles and Hole have no equal in Kornia.
FORMS: dict[type, Callable[[Any, Tensor, Draw], Tensor]] = {
    ColourDistortion: _colour,
    Grey: _grey,
    Lightness: _lightness,
    Solarise: _solarise,
    Sobel: _sobel,
    SobelXY: _sobel_xy,
    geometry.Flip: _flip,
    geometry.Rotate90: _turn,
    geometry.Rotate45: _turn,
    geometry.AllTurns: _all_turns,
    geometry.Shift: _shift,
    geometry.Enlarge: _enlarge,
    geometry.WarpPair: _warp_pair,
}
