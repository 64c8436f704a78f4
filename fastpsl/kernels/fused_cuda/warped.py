"""Shift and Flip, then AET's pairs, normalised, in one launch that reads each image where its copy needs it.

The cost for 512 samples of 32 px, 1,024 images (SSL++ on CIFAR-10), to float16, counted as in shifted.py:

    chain                                one by one              fused
    Shift, Flip, WarpPair         60 launches, 229.1 MB    1 launch, 7.9 MB
    Flip, WarpPair                53 launches, 220.5 MB    1 launch, 7.9 MB

A program writes a part of both images of a pair. The source's 3 KB stay in the multiprocessor's cache.
"""

from collections.abc import Mapping, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpsl.kernels import geometry
from fastpsl.kernels.fused_cuda.placement import drawn_moves, placement, without_moves
from fastpsl.kernels.fused_cuda.quads import load_quads, side_by_side, store_quads
from fastpsl.kernels.geometry import WarpPair
from fastpsl.kernels.normalise import check_fused_arguments, scale_and_shift

# mypy: disable-error-code="no-untyped-def"

GREY = tl.constexpr(float(geometry._GREY))
# Adding and subtracting it rounds to the nearest integer, ties to even, as torch.round does.
INTEGERS = tl.constexpr(2.0**23)
# A program handles 16 rows of 32 px, a quad per thread.
_ROWS, _QUADS, _NUM_WARPS = 16, 8, 4


def fits(ops: Sequence[object]) -> bool:
    """Return whether `ops` are an optional Shift, an optional Flip, then WarpPair."""
    return [type(op) for op in without_moves(ops)] == [WarpPair]


def run(
    images: Tensor, ops: Sequence[object], draws: Sequence[Mapping[str, Tensor]], mean: Sequence[float],
    std: Sequence[float], out: Tensor,
) -> None:  # fmt: skip
    """Compute the result of `ops` into `out`, without waiting for the device; see kernels/fused.py."""
    assert fits(ops), ops
    check_fused_arguments(images, ops, mean, std, out)
    if not len(out):
        return
    images, side = images.contiguous(memory_format=torch.channels_last), images.shape[2]
    flip, shift, max_px = drawn_moves(ops, draws)
    scale, offset = scale_and_shift(mean, std)
    factors = scale + offset
    parts = triton.cdiv(side, _ROWS) * triton.cdiv(side, 4 * _QUADS)
    with torch.cuda.device_of(images):
        warp_pair_kernel[(len(images) * parts,)](
            images, flip, shift, draws[-1]["matrix"].contiguous(), out, *factors,
            MAX_PX=max_px, SIDE=side, ROWS=_ROWS, QUADS=_QUADS, num_warps=_NUM_WARPS,
        )  # fmt: skip


@triton.jit
def warp_pair_kernel(
    images, flip, shift, matrices, out, r_scale, g_scale, b_scale, r_shift, g_shift, b_shift,
    MAX_PX: tl.constexpr, SIDE: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    """Write ROWS x 4 * QUADS pixels of an image and of its copy per program."""
    factors = (r_scale, g_scale, b_scale, r_shift, g_shift, b_shift)
    dtype: tl.constexpr = out.dtype.element_ty
    size: tl.constexpr = 3 * SIDE * SIDE
    across: tl.constexpr = (SIDE + 4 * QUADS - 1) // (4 * QUADS)
    parts: tl.constexpr = across * ((SIDE + ROWS - 1) // ROWS)
    program = tl.program_id(0)
    image = (program // parts).to(tl.int64)
    row, column = program % parts // across * ROWS, program % across * (4 * QUADS)
    top, left, step = placement(image, flip, shift, MAX_PX, SIDE)
    images += image * size
    out += image * (2 * size)
    rows = row + tl.arange(0, ROWS)[:, None]
    columns = column + 4 * tl.arange(0, QUADS)[None, :]
    ys, xs = top + rows, left + step * columns
    quads = load_quads(images, ys * SIDE + xs, step, xs, step, SIDE, (ys >= 0) & (ys < SIDE), factors, dtype)
    store_quads(out, side_by_side(quads, False), row, 1, column, 4, SIDE, SIDE, ROWS, QUADS)
    place = (top, left, step)
    m = matrices + image * 9
    quads = (
        _warped(images, m, rows, columns, place, factors, dtype, SIDE),
        _warped(images, m, rows, columns + 1, place, factors, dtype, SIDE),
        _warped(images, m, rows, columns + 2, place, factors, dtype, SIDE),
        _warped(images, m, rows, columns + 3, place, factors, dtype, SIDE),
    )
    store_quads(out + size, side_by_side(quads, False), row, 1, column, 4, SIDE, SIDE, ROWS, QUADS)


@triton.jit
def _warped(images, m, rows, columns, place, factors, dtype: tl.constexpr, SIDE: tl.constexpr):
    """Return red, green and blue, normalised, of pixels of the moved image's copy, as kernels/geometry.py.

    `m` points to the nine numbers of a matrix.
    """
    y, x = rows.to(tl.float32) + 0.5, columns.to(tl.float32) + 0.5
    u = tl.load(m) * x + tl.load(m + 1) * y + tl.load(m + 2)
    v = tl.load(m + 3) * x + tl.load(m + 4) * y + tl.load(m + 5)
    w = tl.load(m + 6) * x + tl.load(m + 7) * y + tl.load(m + 8)
    u, v = u / w, v / w
    inside = (u >= 0) & (u < SIDE) & (v >= 0) & (v < SIDE)
    # On the horizon and outside there is no position to read at.
    u = tl.minimum(tl.maximum(tl.where(inside, u, 0.5) - 0.5, 0.0), SIDE - 1.0)
    v = tl.minimum(tl.maximum(tl.where(inside, v, 0.5) - 0.5, 0.0), SIDE - 1.0)
    x_0, y_0 = u.to(tl.int32), v.to(tl.int32)
    x_1, y_1 = tl.minimum(x_0 + 1, SIDE - 1), tl.minimum(y_0 + 1, SIDE - 1)
    right, below = u - x_0.to(tl.float32), v - y_0.to(tl.float32)
    at = (
        _place_in(y_0, x_0, place, SIDE), _place_in(y_0, x_1, place, SIDE),
        _place_in(y_1, x_0, place, SIDE), _place_in(y_1, x_1, place, SIDE),
    )  # fmt: skip
    red = _between(images, at, right, below)
    green = _between(images + 1, at, right, below)
    blue = _between(images + 2, at, right, below)
    red = tl.where(inside, red, GREY) * factors[0] + factors[3]
    green = tl.where(inside, green, GREY) * factors[1] + factors[4]
    blue = tl.where(inside, blue, GREY) * factors[2] + factors[5]
    return red.to(dtype), green.to(dtype), blue.to(dtype)


@triton.jit
def _place_in(y, x, place, SIDE: tl.constexpr):
    """Return the position of a pixel's bytes in the source, or -1 if the pixel is black."""
    top, left, step = place
    row, column = top + y, left + step * x
    there = (row >= 0) & (row < SIDE) & (column >= 0) & (column < SIDE)
    return tl.where(there, (row * SIDE + column) * 3, -1)


@triton.jit
def _between(images, at, right, below):
    """Interpolate four bytes bilinearly, rounded to an integer."""
    a, b = _byte(images, at[0]), _byte(images, at[1])
    c, d = _byte(images, at[2]), _byte(images, at[3])
    high, low = a + (b - a) * right, c + (d - c) * right
    return (high + (low - high) * below + INTEGERS) - INTEGERS


@triton.jit
def _byte(images, at):
    return tl.load(images + at, mask=at >= 0, other=0).to(tl.float32)
