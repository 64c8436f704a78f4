"""Crops of images that lie on the device, resized by the mean over areas: gather and crop in one launch.

A program has BLOCK values of one crop, in the order of memory. It adds up the pixels under each of them,
times their shares of the area, in float64, as kernels/device_crops.py does.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# mypy: disable-error-code="no-untyped-def"

BLOCK = 256  # 2 values per thread, of 4 warps; no measurement of others is kept


@triton.jit
def span(start, length, place, size):
    """Return the low and high edge of the areas at `place` on an axis, float64."""
    step = length / size
    half = tl.maximum(step, 1.0) / 2.0
    centre = (place.to(tl.float64) + 0.5) * step + start
    return tl.maximum(centre - half, start), tl.minimum(centre + half, start + length)


@triton.jit
def pixels_seen(length, size):
    """Return how many pixels of an axis an area touches at most."""
    return (length + size - 1) // size + 1


@triton.jit(do_not_specialize=["height", "width", "size", "num_values"])
def crop_kernel(
    images, indices, boxes, out, height, width, size, num_values, CHANNELS: tl.constexpr, BLOCK: tl.constexpr
):
    """Crop image `indices[b]` for each program (b, part); `num_values` is size * size * CHANNELS."""
    number = tl.program_id(0)
    value = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    box = boxes + number * 5
    top, left, rows, columns = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)
    low_y, high_y = span(
        top.to(tl.float64), rows.to(tl.float64), value // CHANNELS // size, size.to(tl.float64)
    )
    low_x, high_x = span(
        left.to(tl.float64), columns.to(tl.float64), value // CHANNELS % size, size.to(tl.float64)
    )
    first_y, first_x = low_y.to(tl.int32), low_x.to(tl.int32)
    image = images + tl.load(indices + number) * height * width * CHANNELS + value % CHANNELS
    total = tl.zeros([BLOCK], tl.float64)
    for i in range(pixels_seen(rows, size)):
        y = first_y + i
        share_y = tl.minimum(high_y, (y + 1).to(tl.float64)) - tl.maximum(low_y, y.to(tl.float64))
        for j in range(pixels_seen(columns, size)):
            x = first_x + j
            share = tl.minimum(high_x, (x + 1).to(tl.float64)) - tl.maximum(low_x, x.to(tl.float64))
            seen = (share_y > 0) & (share > 0) & (value < num_values)
            pixel = tl.load(image + (y * width + x) * CHANNELS, mask=seen, other=0)
            total += pixel.to(tl.float64) * tl.where(seen, share_y * share, 0.0)
    covered = (high_y - low_y) * (high_x - low_x)
    mean = total / tl.where(value < num_values, covered, 1.0)
    # As in crop_area, exact halves go up.
    result = (mean + (0.5 + 0.0001220703125)).to(tl.uint8)
    tl.store(out + number.to(tl.int64) * num_values + value, result, mask=value < num_values)


def crop(images: Tensor, indices: Tensor, boxes: Tensor, size_px: int) -> Tensor:
    """Return `crop_area(images[indices], boxes, size_px)`.

    `images` is uint8 [N, H, W, C], contiguous, `indices` int64 [B], and `boxes` int32 [B, 5], inside the
    images. The result is uint8 [B, size_px, size_px, C].
    """
    _, height, width, channels = images.shape
    assert images.is_contiguous() and boxes.dtype == torch.int32 and boxes.is_contiguous(), boxes.dtype
    assert boxes.shape == (len(indices), 5), boxes.shape
    out = images.new_empty(len(indices), size_px, size_px, channels)
    num_values = size_px * size_px * channels
    if len(indices):
        with torch.cuda.device_of(images):
            crop_kernel[(len(indices), triton.cdiv(num_values, BLOCK))](
                images, indices, boxes, out, height, width, size_px, num_values, CHANNELS=channels,
                BLOCK=BLOCK, num_warps=4,
            )  # fmt: skip
    return out
