"""Crops of whole batches on their device: by the mean over areas, and the windows of isotropic.py.

Both go through Triton where it works, else through torch's operations: running sums, or matrix products.
"""

import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from fastpsl.kernels.fused import tried_out
from fastpsl.kernels.isotropic import (
    BLUE,
    COLOUR_SIGMA_PX,
    DIAGONAL,
    GREEN,
    HALF,
    LUMA_SIGMA_PX,
    REACH_SIGMAS,
    RED,
    SHRINK_SIGMA,
)


def crop_area(images: Tensor, boxes: Tensor, size_px: int) -> Tensor:
    """Return crops of the images, resized to squares by the mean over areas.

    The area is at least one pixel wide and high, and cut off at the box, so that enlarging interpolates
    linearly. The means come from running sums over the image. Between the corners of pixels these sums are
    linear along either axis, and four of them give the sum over any rectangle. The values equal
    those of the CPU decoders' exact resize up to rounding. Sums of bytes are integers and all else is
    float64, so the result does not depend on the process's TF32 setting.

    Both axes, and both edges of an area, share their operations. So a batch takes 0.12 ms of the host's time
    and not 0.21 (an Intel Xeon without a GPU; not measured on one).

    `images` is uint8 [B, H, W, C]. `boxes` [B, 4 or more] has top, left, height and width in source pixels,
    inside the images. The result is uint8 [B, size_px, size_px, C].
    """
    num, height, width, channels = images.shape
    if not num:
        return images.new_empty(0, size_px, size_px, channels)
    # Each [B, 2, 1 or size_px], float64: vertical, then horizontal.
    starts, lengths = boxes[:, :4].to(torch.float64).reshape(num, 2, 2, 1).unbind(1)
    steps = lengths / size_px
    centres = torch.arange(0.5, size_px, dtype=torch.float64, device=images.device) * steps + starts
    half = steps.clamp(min=1) / 2
    low = torch.maximum(centres - half, starts)
    high = torch.minimum(centres + half, starts + lengths)
    covered = high - low
    edges = torch.cat([low, high], 2)  # of all areas along an axis: lows, then highs
    below = edges.ceil().sub_(1).clamp_(min=0)
    share, below = edges.sub_(below), below.to(torch.int64)

    sum_dtype = torch.int32 if 255 * height * width < 2**31 else torch.int64
    sums = images.new_zeros((num, height + 1, width + 1, channels), dtype=sum_dtype)
    sums[:, 1:, 1:] = images
    # Both sums run along axis 1 because along axis 2 the device's scan would give each thread one channel.
    sums = sums.cumsum_(1).transpose(1, 2).contiguous().cumsum_(1)  # [B, W + 1, H + 1, C]
    columns = _between(sums, below[:, 1], share[:, 1]).transpose(1, 2).contiguous()  # [B, H + 1, S, C]
    out = _between(columns, below[:, 0], share[:, 0])
    out /= (covered[:, 0, :, None] * covered[:, 1, None])[..., None]
    # Shrinking by 2 often gives exact halves. The offset rounds them up whatever the rounding errors above.
    return out.add_(0.5 + 2**-13).to(torch.uint8)


def _between(sums: Tensor, below: Tensor, share: Tensor) -> Tensor:
    """Return what lies between S lows and S highs, float64 [B, S, ...], by running sums [B, N + 1, ...].

    An edge, of 2 * S, lies at `below`, int64 [B, 2 * S], and `share` of the way to the next sum.
    """
    first = torch.arange(0, len(sums) * sums.shape[1], sums.shape[1], device=sums.device)
    rows, places = sums.flatten(2).flatten(0, 1), (first[:, None] + below).view(-1)
    low = rows.index_select(0, places).to(torch.float64)
    high = rows.index_select(0, places.add_(1)).to(torch.float64)
    lows, highs = low.lerp_(high, share.reshape(-1, 1)).view(*below.shape, *sums.shape[2:]).chunk(2, 1)
    return highs - lows


# Samples per step of the dense form: 10 MB each for views of 224 px from images of 500 px.
_CHUNK = 32


def crop_isotropic(images: Tensor, boxes: Tensor, size_px: int) -> Tensor:
    """Return the windows of a batch.

    The values are those of `isotropic_resize` up to rounding. CUDA tensors go through Triton's kernels
    (kernels/fused_cuda/isotropic.py). Other devices, and CUDA where Triton does not work, use dense matrix
    products. The host never waits for the device.

    `images` is uint8 [B, H, W, 3]. A smaller image may stand at the top left, because a window never sees
    what lies around it. `boxes` are integers [B, 5]: top, left, side, side, in source pixels, and ISOTROPIC
    or DIAGONAL, inside with `margin_px`. The result is uint8 [B, size_px, size_px, 3].
    """
    fused = fused_form(images.device)
    return crop_densely(images, boxes, size_px) if fused is None else fused.crop(images, boxes, size_px)


def crop_ragged(pixels: Tensor, places: Tensor, boxes: Tensor, size_px: int, widest_px: int) -> Tensor:
    """Return the windows of images of several sizes, for which `fused_form` must not be None.

    `pixels`, uint8 [N], holds the RGB images, their rows one after the other. `places`, int64 [B, 3], tells
    where each image begins in `pixels`, its height and its width. `widest_px` is the width of the widest. The
    rest is as in `crop_isotropic`.
    """
    fused, _ = _tried(pixels.device)
    assert fused is not None
    windows: Tensor = fused.crop_ragged(pixels, places, boxes, size_px, widest_px)
    return windows


def crop_densely(images: Tensor, boxes: Tensor, size_px: int) -> Tensor:
    """Compute `crop_isotropic` by dense matrix products, on any device."""
    parts = [
        _crop_isotropic(images[i : i + _CHUNK], boxes[i : i + _CHUNK], size_px)
        for i in range(0, len(images), _CHUNK)
    ]
    return torch.cat(parts) if parts else images.new_empty(0, size_px, size_px, 3)


@cache
def fused_form(
    device: torch.device, instead: str = "by dense matrix products, many times slower"
) -> ModuleType | None:
    """Return the module of Triton's kernels for a CUDA device, after one trial run.

    For other devices this is None. If Triton does not work it is None as well, with a warning that gives the
    reason.
    """
    module, reason = _tried(device)
    if reason:
        warnings.warn(f"windows turned by 45 degrees are made {instead}: {reason}", stacklevel=3)
    return module


@cache
def area_form(device: torch.device) -> ModuleType | None:
    """Return the module of the kernel that gathers and crops, as `fused_form` does."""
    module, reason = _tried(device, "area")
    if reason:
        warnings.warn(f"crops are made by 45 operations a batch: {reason}", stacklevel=3)
    return module


@cache
def _tried(device: torch.device, name: str = "isotropic") -> tuple[ModuleType | None, str]:
    """Return a module of kernels, or None and why Triton does not work."""
    if device.type != "cuda":
        return None, ""
    images = torch.zeros((1, 64, 64, 3), dtype=torch.uint8, device=device)
    boxes = torch.full((1, 5), 8, dtype=torch.int32, device=device)
    boxes[:, :2].fill_(28)
    boxes[:, 4].fill_(DIAGONAL)
    places = [torch.zeros(1, dtype=torch.int64, device=device)] if name == "area" else []
    return tried_out(name, lambda module: module.crop(images, *places, boxes, 8))


def _crop_isotropic(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    device = images.device
    tops, lefts, sides = boxes[:, :3].to(torch.float64).unbind(1)
    diagonal = boxes[:, 4] == DIAGONAL
    step = sides / size
    # A turned window needs all these points; an upright one uses the first `size`.
    i = torch.arange(2 * size - 1, device=device)
    points = torch.where(
        diagonal[:, None],
        (i - (size - 1)) * (step * 0.5**0.5)[:, None],
        (i - (size - 1) / 2) * step[:, None],
    )
    at = torch.arange(size, device=device)
    upright = at[:, None] * (2 * size - 1) + at
    turned = (at[:, None] + at) * (2 * size - 1) + (at - at[:, None] + size - 1)
    pick = torch.where(diagonal[:, None, None], turned, upright).flatten(1)

    def mixed(plane: Tensor, sigma_px: float) -> Tensor:
        sigma = (SHRINK_SIGMA * step).clamp(min=sigma_px)
        rows = _weights(points + (tops + sides / 2)[:, None], sigma, plane.shape[1])
        columns = _weights(points + (lefts + sides / 2)[:, None], sigma, plane.shape[2])
        return (rows @ plane @ columns.transpose(1, 2)).flatten(1).gather(1, pick)

    # Everything is float64. float32 products may run in TF32, which training enables for the whole process,
    # and pixels would then depend on that. On a GPU with slow float64 this fallback is slower still.
    red, green, blue = images.to(torch.float64).unbind(3)
    luma = float(RED) * red + float(GREEN) * green + float(BLUE) * blue
    y = mixed(luma, LUMA_SIGMA_PX)
    b, r = mixed(blue - luma, COLOUR_SIGMA_PX), mixed(red - luma, COLOUR_SIGMA_PX)
    g = (float(RED) * r + float(BLUE) * b) / -float(GREEN)
    out = torch.stack([y + r, y + g, y + b], 2).add_(float(HALF)).clamp_(0, 255)
    return out.to(torch.uint8).view(len(images), size, size, 3)


def _weights(points: Tensor, sigma: Tensor, limit: int) -> Tensor:
    """Return float64 [B, N, limit]: the weights of all source pixels of an axis at each point."""
    pixels = torch.arange(limit, device=points.device) + 0.5
    distance = (pixels - points[:, :, None]) / sigma[:, None, None]
    weights = torch.exp(-0.5 * distance.square()) * (distance.abs() <= REACH_SIGMAS)
    # Points that an upright window does not use may see no pixel at all.
    return weights / weights.sum(2, keepdim=True).clamp(min=1e-9)
