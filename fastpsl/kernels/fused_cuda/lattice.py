"""Where the points of an isotropic window lie on its source, and what they see of it (kernels/isotropic.py): parts of kernels.

Of a turned window lines and columns count from 0 to 2 * size - 2, and every second place where they cross is a point.
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
    """Of a box: whether it is turned; how many points there are along each axis, and half their distance in source pixels;
    twice the centre's row and column; of luma and colour how far the kernels reach, and FALL / sigma²."""
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
    """Of the source pixels that the points `first` to `last` see: the first, and the one behind the last, or a pixel more at both
    ends. middle: twice the centre's row or column."""
    num, half_pitch, reach = lattice[1], lattice[2], tl.maximum(lattice[5], lattice[6])
    low = middle * 0.5 - 0.5 + (2 * first - num + 1) * half_pitch - reach
    high = middle * 0.5 - 0.5 + (2 * last - num + 1) * half_pitch + reach
    return tl.floor(low).to(tl.int32), tl.ceil(high).to(tl.int32) + 1


@triton.jit
def half_width(group, size, LINES: tl.constexpr):
    """How many columns of a turned window lie on either side of its middle one, on the widest of the group's LINES lines."""
    first = group * LINES
    return size - 1 - tl.maximum(tl.maximum(first - size + 1, size - first - LINES), 0)


@triton.jit
def columns_seen(group, size, lattice, LINES: tl.constexpr):
    """Of the source columns that the points of the group's LINES lines see: the first, and the one behind the last."""
    half = half_width(group, size, LINES)
    first = tl.where(lattice[0], size - 1 - half, 0)
    last = tl.where(lattice[0], size - 1 + half, size - 1)
    start, end = span(first, last, lattice[4], lattice)
    return tl.maximum(start, 0), end


@triton.jit
def weights(pixels, points, middle, lattice):
    """float16: what points, which count from 0 to num - 1, see of pixels of luma and of colour; 1 at most."""
    num, half_pitch = lattice[1], lattice[2]
    # The integer part is exact; pixel k lies at k + 0.5.
    distance = (2 * pixels + 1 - middle) * 0.5 - (2 * points - num + 1) * half_pitch
    square, far = distance * distance, tl.abs(distance)
    luma = tl.where(far <= lattice[5], tl.exp2(square * lattice[7]), 0.0)
    colour = tl.where(far <= lattice[6], tl.exp2(square * lattice[8]), 0.0)
    return luma.to(tl.float16), colour.to(tl.float16)


@triton.jit
def share(weights, AXIS: tl.constexpr):
    """1 / their sum along an axis, which is kept; lines that no window has may see nothing at all."""
    return 1.0 / tl.maximum(tl.sum(weights, AXIS, keep_dims=True), 1e-6)


@triton.jit
def diamond(n, line, column, size, TILE: tl.constexpr):
    """2 * TILE lines from `line` on and as many columns hold a diamond of the window. Any two rows of it that are TILE apart have
    2 * TILE pixels together: line i shows one of the n-th two in column i - length, cyclically, where length is the shorter
    row's. Of those: number among the pixels [TILE, TILE, 2] of even and odd lines, and row and column in the window."""
    i = tl.arange(0, 2 * TILE)[None, :]
    j = (i - 2 * n - (size - 1) % 2) & (2 * TILE - 1)
    which = (i // 2 * TILE + j // 2) * 2 + i % 2
    down, across = line + i, column + j
    return which, (down - across + size - 1) >> 1, (down + across - size + 1) >> 1
