"""The points of an isotropic window on its source, and their weights (kernels/isotropic.py).

The functions are parts of kernels. Lines and columns of a turned window count from 0 to 2 * size - 2, and
every second crossing of them is a point.
"""

import math

import triton
import triton.language as tl

from fastpsl.kernels import isotropic

# mypy: disable-error-code="no-untyped-def"

LUMA_SIGMA = tl.constexpr(isotropic.LUMA_SIGMA_PX)
COLOUR_SIGMA = tl.constexpr(isotropic.COLOUR_SIGMA_PX)
SHRINK = tl.constexpr(isotropic.SHRINK_SIGMA)
REACH = tl.constexpr(isotropic.REACH_SIGMAS)
DIAGONAL = tl.constexpr(isotropic.DIAGONAL)
HALF_ROOT = tl.constexpr(0.5 * math.sqrt(0.5))
# exp(-d² / 2) = 2 ** (FALL * d²)
FALL = tl.constexpr(-0.5 * math.log2(math.e))


@triton.jit
def lattice_of(box, size):
    """Return the lattice of a box, as a tuple.

    It begins with whether the window is turned, the number of points along each axis, and half their distance
    in source pixels. Then come twice the centre's row and column, the reach of the luma and colour kernels,
    and FALL / sigma² of both.
    """
    side = tl.load(box + 2)
    step = side.to(tl.float32) / size
    turned = tl.load(box + 4) == DIAGONAL
    num = tl.where(turned, 2 * size - 1, size)
    half_pitch = step * tl.where(turned, HALF_ROOT, 0.5)
    y, x = 2 * tl.load(box) + side, 2 * tl.load(box + 1) + side
    luma, colour = tl.maximum(step * SHRINK, LUMA_SIGMA), tl.maximum(step * SHRINK, COLOUR_SIGMA)
    fall_luma, fall_colour = 1.0 / (luma * luma) * FALL, 1.0 / (colour * colour) * FALL
    return turned, num, half_pitch, y, x, luma * REACH, colour * REACH, fall_luma, fall_colour


@triton.jit
def span(first, last, middle, lattice):
    """Return the half-open range of source pixels that the points `first` to `last` see.

    It may have a pixel more at both ends. `middle` is twice the centre's row or column.
    """
    num, half_pitch, reach = lattice[1], lattice[2], tl.maximum(lattice[5], lattice[6])
    low = middle * 0.5 - 0.5 + (2 * first - num + 1) * half_pitch - reach
    high = middle * 0.5 - 0.5 + (2 * last - num + 1) * half_pitch + reach
    return tl.floor(low).to(tl.int32), tl.ceil(high).to(tl.int32) + 1


@triton.jit
def half_width(group, size, LINES: tl.constexpr):
    """Return how far a turned window reaches from its middle column, at most, on the group's LINES lines."""
    first = group * LINES
    return size - 1 - tl.maximum(tl.maximum(first - size + 1, size - first - LINES), 0)


@triton.jit
def columns_seen(group, size, lattice, LINES: tl.constexpr):
    """Return the half-open range of source columns that the points of the group's LINES lines see."""
    half = half_width(group, size, LINES)
    first = tl.where(lattice[0], size - 1 - half, 0)
    last = tl.where(lattice[0], size - 1 + half, size - 1)
    start, end = span(first, last, lattice[4], lattice)
    return tl.maximum(start, 0), end


@triton.jit
def weights(pixels, points, middle, lattice):
    """Return the weights, float16 up to 1, of points (from 0 to num - 1) for pixels of luma and of colour."""
    num, half_pitch = lattice[1], lattice[2]
    # The integer part is exact. Pixel k lies at k + 0.5.
    distance = (2 * pixels + 1 - middle) * 0.5 - (2 * points - num + 1) * half_pitch
    square, far = distance * distance, tl.abs(distance)
    luma = tl.where(far <= lattice[5], tl.exp2(square * lattice[7]), 0.0)
    colour = tl.where(far <= lattice[6], tl.exp2(square * lattice[8]), 0.0)
    return luma.to(tl.float16), colour.to(tl.float16)


@triton.jit
def share(weights, AXIS: tl.constexpr):
    """Return 1 / sum along an axis, which is kept; lines outside the window may have a sum of 0."""
    return 1.0 / tl.maximum(tl.sum(weights, AXIS, keep_dims=True), 1e-6)


@triton.jit
def diamond(n, line, column, size, TILE: tl.constexpr):
    """Return the numbers, rows and columns of a diamond's pixels in the n-th pair of its rows.

    The diamond is the part of the window in 2 * TILE lines from `line` on and as many columns. Its rows are
    taken in pairs that are TILE apart, because two such rows have 2 * TILE pixels together. Each line i has
    one pixel of a pair, in column i - length modulo 2 * TILE, where length is that of the shorter row. Pixel
    numbers are places in [TILE, TILE, 2], the points of even and odd lines. Rows and columns are the
    window's.
    """
    i = tl.arange(0, 2 * TILE)[None, :]
    j = (i - 2 * n - (size - 1) % 2) & (2 * TILE - 1)
    which = (i // 2 * TILE + j // 2) * 2 + i % 2
    down, across = line + i, column + j
    return which, (down - across + size - 1) >> 1, (down + across - size + 1) >> 1
