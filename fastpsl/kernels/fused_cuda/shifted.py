"""Shift and Flip, then nothing, a Hole or Lightness, normalised, in one launch.

The cost for 512 samples of 32 px (SSL++ on CIFAR-10) to float16, counted and not measured. One by one, the
count is under FakeTensorMode, where everything but a view is a launch that reads and writes its tensors once:

    chain                                one by one              fused
    Shift, Flip                   20 launches,  46.4 MB    1 launch, 4.7 MB
    Shift, Flip, Hole             24 launches,  49.9 MB    1 launch, 4.7 MB
    Shift, Flip, Lightness        37 launches, 186.9 MB    1 launch, 2.6 MB
    Flip, Hole                    17 launches,  41.3 MB    1 launch, 4.7 MB

A lane computes one value, so stores are of 16 bytes, and neighbouring lanes read neighbouring bytes even if
mirrored.
"""

from collections.abc import Mapping, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpsl.kernels.fused_cuda.colour import lightness
from fastpsl.kernels.fused_cuda.placement import drawn_moves, placement, without_moves
from fastpsl.kernels.geometry import Hole
from fastpsl.kernels.lab import Lightness
from fastpsl.kernels.normalise import check_fused_arguments, scale_and_shift

# mypy: disable-error-code="no-untyped-def"

UNIT = tl.constexpr(1 / 255)
# Values per program, 8 per thread.
_BLOCK, _NUM_WARPS = 1024, 4


def fits(ops: Sequence[object]) -> bool:
    """Return whether `ops` are an optional Shift, an optional Flip, then nothing, a Hole or Lightness."""
    return [type(op) for op in without_moves(ops)] in ([], [Hole], [Lightness])


def run(
    images: Tensor, ops: Sequence[object], draws: Sequence[Mapping[str, Tensor]], mean: Sequence[float],
    std: Sequence[float], out: Tensor,
) -> None:  # fmt: skip
    """Compute the result of `ops` into `out`, without waiting for the device; see kernels/fused.py."""
    assert fits(ops), ops
    check_fused_arguments(images, ops, mean, std, out)
    channels, height, width = out.shape[1:]
    if not out.numel():
        return
    images = images.contiguous(memory_format=torch.channels_last)
    flip, shift, max_px = drawn_moves(ops, draws)
    sizes = {"MAX_PX": max_px, "HEIGHT": height, "WIDTH": width, "BLOCK": _BLOCK, "num_warps": _NUM_WARPS}
    grid = (len(images) * triton.cdiv(channels * height * width, _BLOCK),)
    scale, offset = scale_and_shift(mean, std)
    with torch.cuda.device_of(images):
        if channels == 1:
            shifted_lightness[grid](images, out, flip, shift, 1 / std[0], -mean[0] / std[0], **sizes)
            return
        rows = columns = slice(0, 0)
        fill: tuple[float, ...] = (0.0, 0.0, 0.0)
        if ops and isinstance(ops[-1], Hole):
            rows, columns = ops[-1].box(channels, height, width)
            fill = tuple(float(round(255 * value)) for value in ops[-1].fill)
        shifted_colours[grid](
            images, out, flip, shift, *scale, *offset, *fill,
            TOP=rows.start, BOTTOM=rows.stop, LEFT=columns.start, RIGHT=columns.stop, **sizes,
        )  # fmt: skip


@triton.jit
def of_channel(channel, red, green, blue):
    """Return the one of three numbers that belongs to a channel, 0 to 2."""
    return tl.where(channel == 0, red, tl.where(channel == 1, green, blue))


@triton.jit
def part_of_sample(size: tl.constexpr, BLOCK: tl.constexpr):
    """Return this program's sample, int64, and the numbers [BLOCK] of its values in it.

    The programs of a sample of `size` values are consecutive.
    """
    blocks: tl.constexpr = (size + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    return (program // blocks).to(tl.int64), program % blocks * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def source_of(sample, pixel, flip, shift, MAX_PX: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Return the source's pixel numbers for pixels of the moved image, and whether the source has them."""
    top, left, step = placement(sample, flip, shift, MAX_PX, WIDTH)
    row, column = top + pixel // WIDTH, left + step * (pixel % WIDTH)
    there = (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
    return row * WIDTH + column, there


@triton.jit
def shifted_colours(
    images, out, flip, shift, r_scale, g_scale, b_scale, r_shift, g_shift, b_shift, r_fill, g_fill, b_fill,
    TOP: tl.constexpr, BOTTOM: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    MAX_PX: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute [B, H, W, 3] from images, uint8 [B, H, W, 3].

    The hole has the rows TOP to BOTTOM - 1 and the columns LEFT to RIGHT - 1.
    """
    size: tl.constexpr = 3 * HEIGHT * WIDTH
    sample, value = part_of_sample(size, BLOCK)
    pixel, channel = value // 3, value % 3
    source, there = source_of(sample, pixel, flip, shift, MAX_PX, HEIGHT, WIDTH)
    here = tl.load(images + sample * size + source * 3 + channel, mask=there & (value < size), other=0)
    colour = here.to(tl.float32)
    if BOTTOM > 0:
        y, x = pixel // WIDTH, pixel % WIDTH
        hidden = (y >= TOP) & (y < BOTTOM) & (x >= LEFT) & (x < RIGHT)
        colour = tl.where(hidden, of_channel(channel, r_fill, g_fill, b_fill), colour)
    colour = colour * of_channel(channel, r_scale, g_scale, b_scale)
    colour += of_channel(channel, r_shift, g_shift, b_shift)
    tl.store(out + sample * size + value, colour.to(out.dtype.element_ty), mask=value < size)


@triton.jit
def shifted_lightness(
    images, out, flip, shift, scale, offset,
    MAX_PX: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute [B, H, W, 1] from images, uint8 [B, H, W, 3]."""
    size: tl.constexpr = HEIGHT * WIDTH
    sample, pixel = part_of_sample(size, BLOCK)
    source, there = source_of(sample, pixel, flip, shift, MAX_PX, HEIGHT, WIDTH)
    there &= pixel < size
    images += sample * (3 * size) + source * 3
    red = tl.load(images, mask=there, other=0).to(tl.float32) * UNIT
    green = tl.load(images + 1, mask=there, other=0).to(tl.float32) * UNIT
    blue = tl.load(images + 2, mask=there, other=0).to(tl.float32) * UNIT
    light = lightness(red, green, blue) * scale + offset
    tl.store(out + sample * size + pixel, light.to(out.dtype.element_ty), mask=pixel < size)
