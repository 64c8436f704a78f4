"""Crop and area resize of a batch on its device: an output pixel is the mean of the source area it covers."""

import torch
from torch import Tensor


def crop_area(images: Tensor, boxes: Tensor, size_px: int) -> Tensor:
    """Return crops of the images, resized to squares by the mean over areas.

    The area is at least one pixel wide and high, and cut off at the box, so that enlarging interpolates
    linearly. The means come from running sums over the image. Between the corners of pixels these sums are
    linear along either axis, and four of them give the sum over any rectangle. The values equal
    those of the CPU decoders' exact resize up to rounding. Sums of bytes are integers and all else is
    float64, so the result does not depend on the process's TF32 setting.

    Not measured on a GPU.

    `images` is uint8 [B, H, W, C]. `boxes` [B, 4 or more] has top, left, height and width in source pixels,
    inside the images. The result is uint8 [B, size_px, size_px, C].
    """
    num, height, width, channels = images.shape
    if not num:
        return images.new_empty(0, size_px, size_px, channels)
    tops, lefts, heights, widths = boxes[:, :4].to(torch.float64).unbind(1)
    sum_dtype = torch.int32 if 255 * height * width < 2**31 else torch.int64
    sums = images.new_zeros((num, height + 1, width + 1, channels), dtype=sum_dtype)
    sums[:, 1:, 1:] = images
    # Both sums run along axis 1 because along axis 2 the device's scan would give each thread one channel.
    sums = sums.cumsum_(1).transpose(1, 2).contiguous().cumsum_(1)  # [B, W + 1, H + 1, C]
    columns = _means(sums, lefts, widths, size_px).transpose(1, 2).contiguous()  # [B, H + 1, S, C]
    out = _means(columns, tops, heights, size_px)
    # Shrinking by 2 often gives exact halves. The offset rounds them up whatever the rounding errors above.
    return out.add_(0.5 + 2**-13).to(torch.uint8)


def _means(sums: Tensor, starts: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Return the means under output pixels, float64 [B, size, ...], from running sums [B, N + 1, ...]."""
    steps = (lengths / size)[:, None]
    centres = starts[:, None] + (torch.arange(size, device=sums.device) + 0.5) * steps
    half = steps.clamp(min=1) / 2
    low = torch.maximum(centres - half, starts[:, None])
    high = torch.minimum(centres + half, (starts + lengths)[:, None])
    covered = (high - low).view(*low.shape, *[1] * (sums.ndim - 2))
    return (_at(sums, high) - _at(sums, low)).div_(covered)


def _at(sums: Tensor, positions: Tensor) -> Tensor:
    """Return `sums` [B, N + 1, ...] interpolated at positions [B, S] of axis 1, float64 [B, S, ...]."""
    below = positions.floor().clamp_(max=sums.shape[1] - 2)
    share = (positions - below).view(-1, 1)
    # An edge that falls on a pixel's edge takes nothing of the next pixel.
    first = torch.arange(len(sums), device=sums.device)[:, None] * sums.shape[1]
    rows, low = sums.flatten(2).flatten(0, 1), (first + below.to(torch.int64)).view(-1)
    out = rows.index_select(0, low).to(torch.float64).mul_(1 - share)
    out.addcmul_(rows.index_select(0, low.add_(1)).to(torch.float64), share)
    return out.view(*positions.shape, *sums.shape[2:])
