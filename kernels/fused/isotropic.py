"""The windows of kernels/isotropic.py on a GPU: two banded matrix products a picture, on tensor cores.

vertical_kernel     bytes → luma and colour, weighted along columns: half precision, [3 planes, lines, source columns]
horizontal_kernel   those, weighted along rows → bytes of the window

Both windows are separable on an upright lattice, so a tile of points takes a tile of weights, made where it is used, of as
many source pixels as it sees. Of the lattice of a turned window every second point is needed: even lines take columns of
one parity, odd lines those of the other, each a lattice of its own. A tile of both is a diamond of the window.

Weights, luma, colour and what lies between the passes are rounded to half precision, sums are not, and weights are made to
sum to 1 as they were rounded: a flat picture stays what it is. Of white noise 0.4 % of the bytes so differ by one level from
`isotropic_resize`. No probe of spectra tells the angle (tests/pipelines/test_rotation_leak.py's, 1,200 views of each kind);
bfloat16, with an eighth of the precision, lets it be told (59 % of enlarged noise).
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpsl.kernels import isotropic
from fastpsl.kernels.fused.variant import Variant

# mypy: disable-error-code="no-untyped-def"

# Lines that a program of the first pass makes, of how many columns; source pixels that both add up at a time.
_LINES, _COLUMNS, _PART = 32, 128, 16
# A program of the second pass makes points of as many lines of each of two classes, and as many columns.
_TILE, _STORED = 32, 8
_VERTICAL_WARPS, _HORIZONTAL_WARPS = 8, 4
# What lies between the passes for as many pictures as are taken at a time: no more than a large L2 cache holds.
_BETWEEN_BYTES = 64 << 20

# exp(-d²/2) = 2 ** (d² * _FALL)
_FALL = tl.constexpr(-0.5 * math.log2(math.e))
_ROOT = tl.constexpr(math.sqrt(0.5))
# Subtracted from luma between its bytes: halves are finest around 0.
_GREY = tl.constexpr(128.0)


def crop(images: Tensor, boxes: Tensor, size_px: int) -> Tensor:
    """`crop_isotropic`, whose boxes must be inside, on CUDA: uint8 [B, H, W, 3] and integer boxes [B, 5] → uint8
    [B, size_px, size_px, 3]. Where they are not, values are undefined, and nothing else is read or written."""
    num, height, width, channels = images.shape
    assert images.dtype == torch.uint8 and channels == 3 and boxes.shape == (num, 5), (
        images.shape,
        boxes.shape,
    )
    out = images.new_empty(num, size_px, size_px, 3)
    if not out.numel() or not images.numel():
        return out
    images, boxes = images.contiguous(), boxes.to(torch.int32).contiguous()
    if images.data_ptr() % 4:
        images = images.clone()
    groups, blocks = triton.cdiv(size_px, _TILE), triton.cdiv(width, _COLUMNS)
    lines = 2 * _TILE * groups
    most = max(1, _BETWEEN_BYTES // (3 * lines * blocks * _COLUMNS * 2))
    at_a_time = triton.cdiv(num, triton.cdiv(num, most))
    between = images.new_empty(at_a_time, 3, lines, blocks * _COLUMNS, dtype=torch.float16)
    for first in range(0, num, at_a_time):
        num_here = min(at_a_time, num - first)
        vertical_kernel[(blocks, lines // _LINES, num_here)](
            images, boxes, between, first, height, width, size_px, blocks, lines,
            **_constants(), LINES=_LINES, COLUMNS=_COLUMNS, PART=_PART, TILE=_TILE, num_warps=_VERTICAL_WARPS,
        )  # fmt: skip
        horizontal_kernel[(groups, groups, num_here)](
            between, boxes, out, first, size_px, blocks, lines,
            **_constants(), COLUMNS=_COLUMNS, PART=_PART, TILE=_TILE, STORED=_STORED, num_warps=_HORIZONTAL_WARPS,
        )  # fmt: skip
    return out


def _constants() -> dict[str, float]:
    return {
        "LUMA_SIGMA": isotropic.LUMA_SIGMA_PX,
        "COLOUR_SIGMA": isotropic.COLOUR_SIGMA_PX,
        "SHRINK": isotropic.SHRINK_SIGMA,
        "REACH": isotropic.REACH_SIGMAS,
        "DIAGONAL": isotropic.DIAGONAL,
        "RED": float(isotropic._RED),
        "GREEN": float(isotropic._GREEN),
        "BLUE": float(isotropic._BLUE),
        "HALF": float(isotropic._HALF),
    }


@triton.jit(do_not_specialize=["first_image", "height", "width", "size", "blocks", "lines"])
def vertical_kernel(
    images, boxes, between, first_image, height, width, size, blocks, lines,
    LUMA_SIGMA: tl.constexpr, COLOUR_SIGMA: tl.constexpr, SHRINK: tl.constexpr, REACH: tl.constexpr,
    DIAGONAL: tl.constexpr, RED: tl.constexpr, GREEN: tl.constexpr, BLUE: tl.constexpr, HALF: tl.constexpr,
    LINES: tl.constexpr, COLUMNS: tl.constexpr, PART: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A program: LINES lines of COLUMNS source columns, of those that the lines' points see."""
    block, line, number = tl.program_id(0), tl.program_id(1) * LINES, tl.program_id(2)
    image = (first_image + number).to(tl.int64)
    lattice = _lattice(boxes + image * 5, size, LUMA_SIGMA, COLOUR_SIGMA, SHRINK, REACH, DIAGONAL)
    num, top, left = lattice[1], lattice[3], lattice[4]
    start, end = _seen(line // (2 * TILE), left, size, lattice, TILE)
    if (line >= num) | (start + block * COLUMNS >= end):
        return
    # What is not in the picture has no weight, and anything of the picture is read for it.
    quads = start + block * COLUMNS + 4 * tl.arange(0, COLUMNS // 4)[None, :]
    quads = tl.minimum(quads, width - 1)
    offset = image * (height * width * 3)
    words = images.to(tl.pointer_type(tl.uint32), bitcast=True) + offset // 4
    skip = (offset % 4).to(tl.int32)
    last_word = (skip + height * width * 3 - 1) // 4
    points = line + tl.arange(0, LINES)[:, None]
    first, last = _span(line, tl.minimum(line + LINES, num) - 1, top, lattice)
    y = tl.zeros((LINES, COLUMNS), tl.float32)
    b = tl.zeros((LINES, COLUMNS), tl.float32)
    r = tl.zeros((LINES, COLUMNS), tl.float32)
    luma_sums = tl.zeros((LINES, PART), tl.float32)
    colour_sums = tl.zeros((LINES, PART), tl.float32)
    for row in range(tl.maximum(first, 0), tl.minimum(last, height), PART):
        rows = row + tl.arange(0, PART)
        at = skip + (tl.minimum(rows, height - 1)[:, None] * width + quads) * 3
        luma, blue, red = _planes(words, at, last_word, RED, GREEN, BLUE)
        luma_weights, colour_weights = _weights(rows[None, :], points, top, lattice)
        luma_sums += luma_weights
        colour_sums += colour_weights
        y = tl.dot(luma_weights, luma, y)
        b = tl.dot(colour_weights, blue, b)
        r = tl.dot(colour_weights, red, r)
    luma_share, colour_share = _share(luma_sums, 1), _share(colour_sums, 1)
    plane = lines * (blocks * COLUMNS)
    to = between + number.to(tl.int64) * (3 * plane) + points * (blocks * COLUMNS)
    to += block * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(to, (y * luma_share).to(tl.float16))
    tl.store(to + plane, (b * colour_share).to(tl.float16))
    tl.store(to + 2 * plane, (r * colour_share).to(tl.float16))


@triton.jit(do_not_specialize=["first_image", "size", "blocks", "lines"])
def horizontal_kernel(
    between, boxes, out, first_image, size, blocks, lines,
    LUMA_SIGMA: tl.constexpr, COLOUR_SIGMA: tl.constexpr, SHRINK: tl.constexpr, REACH: tl.constexpr,
    DIAGONAL: tl.constexpr, RED: tl.constexpr, GREEN: tl.constexpr, BLUE: tl.constexpr, HALF: tl.constexpr,
    COLUMNS: tl.constexpr, PART: tl.constexpr, TILE: tl.constexpr, STORED: tl.constexpr,
):  # fmt: skip
    """A program: of an upright window 2 * TILE rows of TILE columns; of a turned one TILE even and TILE odd lines, TILE points
    of each."""
    tile, group, number = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    image = (first_image + number).to(tl.int64)
    lattice = _lattice(boxes + image * 5, size, LUMA_SIGMA, COLOUR_SIGMA, SHRINK, REACH, DIAGONAL)
    plane = lines * (blocks * COLUMNS)
    between += number.to(tl.int64) * (3 * plane)
    out += image * (size * size * 3)
    turned, line, points = lattice[0], 2 * TILE * group, tl.arange(0, TILE)
    # The first column in which the group's lines have points of a turned window; even, as lines are.
    wide = _widest(group, size, TILE)
    column = tl.where(turned, (size - 1 - wide) // 2 * 2 + 2 * TILE * tile, TILE * tile)
    if tl.where(turned, column >= size + wide, line >= size):
        return
    if turned:
        # Where a line and a column cross there is a point if their sum is as even as size - 1.
        odd = (size - 1) % 2
        even_lines = _mix(between, line + 2 * points, column + odd + 2 * points, group, column, 2 * TILE, size, plane,
                          blocks, lattice, RED, GREEN, BLUE, HALF, COLUMNS, PART, TILE)  # fmt: skip
        odd_lines = _mix(between, line + 1 + 2 * points, column + 1 - odd + 2 * points, group, column, 2 * TILE, size,
                         plane, blocks, lattice, RED, GREEN, BLUE, HALF, COLUMNS, PART, TILE)  # fmt: skip
        pixels = tl.reshape(tl.join(even_lines, odd_lines), [2 * TILE * TILE])
    else:
        pixels = _mix(between, line + tl.arange(0, 2 * TILE), column + points, group, column, TILE, size, plane,
                      blocks, lattice, RED, GREEN, BLUE, HALF, COLUMNS, PART, TILE)  # fmt: skip
        pixels = tl.reshape(pixels, [2 * TILE * TILE])
    # In the order in which they lie beside each other in memory, a few at a time.
    for first in range(0, TILE, STORED):
        n = first + tl.arange(0, STORED)[:, None]
        if turned:
            which, rows, columns = _diamond(n, line, column, size, TILE)
        else:
            which = n * (2 * TILE) + tl.arange(0, 2 * TILE)[None, :]
            rows, columns = line + which // TILE, column + which % TILE
        values = tl.gather(pixels, tl.reshape(which, [2 * TILE * STORED]), 0)
        _store(out, tl.reshape(values, [STORED, 2 * TILE]), rows, columns, size)


@triton.jit
def _lattice(
    box, size, LUMA_SIGMA: tl.constexpr, COLOUR_SIGMA: tl.constexpr, SHRINK: tl.constexpr, REACH: tl.constexpr,
    DIAGONAL: tl.constexpr,
):  # fmt: skip
    """Of a box: whether it is turned; how many points there are along each axis, and half their distance in source pixels;
    twice the centre's row and column; of luma and colour how far the kernels reach, and -log2(e) / (2 * sigma²)."""
    side = tl.load(box + 2)
    step = side.to(tl.float32) / size
    turned = tl.load(box + 4) == DIAGONAL
    num = tl.where(turned, 2 * size - 1, size)
    half_pitch = tl.where(turned, step * (0.5 * _ROOT), step * 0.5)
    luma, colour = tl.maximum(SHRINK * step, LUMA_SIGMA), tl.maximum(SHRINK * step, COLOUR_SIGMA)
    middles = 2 * tl.load(box) + side, 2 * tl.load(box + 1) + side
    reaches = REACH * luma, REACH * colour
    return (
        turned,
        num,
        half_pitch,
        middles[0],
        middles[1],
        reaches[0],
        reaches[1],
        _FALL / (luma * luma),
        _FALL / (colour * colour),
    )


@triton.jit
def _span(first, last, middle, lattice):
    """Of the source pixels that the points `first` to `last` see: the first, and the one behind the last, or a pixel more at both
    ends."""
    num, half_pitch, reach = lattice[1], lattice[2], tl.maximum(lattice[5], lattice[6])
    low = middle * 0.5 - 0.5 + (2 * first - num + 1) * half_pitch - reach
    high = middle * 0.5 - 0.5 + (2 * last - num + 1) * half_pitch + reach
    return tl.floor(low).to(tl.int32), tl.ceil(high).to(tl.int32) + 1


@triton.jit
def _widest(group, size, TILE: tl.constexpr):
    """How many points of a turned window lie on either side of its middle column, on the widest of the group's lines."""
    first = 2 * TILE * group
    return size - 1 - tl.maximum(tl.maximum(first - size + 1, size - first - 2 * TILE), 0)


@triton.jit
def _seen(group, middle, size, lattice, TILE: tl.constexpr):
    """Of the source columns that the points of a group of 2 * TILE lines see: the first, which is the first between the passes,
    and the one behind the last."""
    wide = _widest(group, size, TILE)
    first = tl.where(lattice[0], size - 1 - wide, 0)
    last = tl.where(lattice[0], size - 1 + wide, size - 1)
    start, end = _span(first, last, middle, lattice)
    return tl.maximum(start, 0), end


@triton.jit
def _weights(pixels, points, middle, lattice):
    """float16: what points, which count from 0 to num - 1, see of pixels of luma and of colour, the most as 1."""
    num, half_pitch = lattice[1], lattice[2]
    # The integer part is exact; pixel k lies at k + 0.5.
    distance = (2 * pixels + 1 - middle) * 0.5 - (2 * points - num + 1) * half_pitch
    square, far = distance * distance, tl.abs(distance)
    luma = tl.where(far <= lattice[5], tl.exp2(square * lattice[7]), 0.0)
    colour = tl.where(far <= lattice[6], tl.exp2(square * lattice[8]), 0.0)
    return luma.to(tl.float16), colour.to(tl.float16)


@triton.jit
def _planes(words, at, last_word, RED: tl.constexpr, GREEN: tl.constexpr, BLUE: tl.constexpr):
    """Luma less 128, blue - luma, red - luma, float16, of four pixels from each of the bytes `at` on: twelve bytes, loaded as the
    four words in which they lie."""
    first = at >> 2
    a = tl.load(words + tl.minimum(first, last_word))
    b = tl.load(words + tl.minimum(first + 1, last_word))
    c = tl.load(words + tl.minimum(first + 2, last_word))
    d = tl.load(words + tl.minimum(first + 3, last_word))
    shift = (at & 3).to(tl.uint32) * 8
    a, b, c = _joined(a, b, shift), _joined(b, c, shift), _joined(c, d, shift)
    first = _plane(a, a >> 8, a >> 16, RED, GREEN, BLUE)
    second = _plane(a >> 24, b, b >> 8, RED, GREEN, BLUE)
    third = _plane(b >> 16, b >> 24, c, RED, GREEN, BLUE)
    fourth = _plane(c >> 8, c >> 16, c >> 24, RED, GREEN, BLUE)
    return (
        _in_turn(first[0], second[0], third[0], fourth[0]),
        _in_turn(first[1], second[1], third[1], fourth[1]),
        _in_turn(first[2], second[2], third[2], fourth[2]),
    )


@triton.jit
def _joined(low, high, shift):
    """Four bytes from byte shift / 8 of `low` on."""
    return (low >> shift) | ((high << 1) << (shift ^ 31))


@triton.jit
def _plane(red, green, blue, RED: tl.constexpr, GREEN: tl.constexpr, BLUE: tl.constexpr):
    red, green, blue = (red & 255).to(tl.float32), (green & 255).to(tl.float32), (blue & 255).to(tl.float32)
    luma = RED * red + GREEN * green + BLUE * blue
    return (luma - _GREY).to(tl.float16), (blue - luma).to(tl.float16), (red - luma).to(tl.float16)


@triton.jit
def _in_turn(a, b, c, d):
    """[R, Q] four times → [R, 4 * Q]: the first of each, the second of each, and so on."""
    values = tl.join(tl.join(a, c), tl.join(b, d))
    return tl.reshape(values, [a.shape[0], 4 * a.shape[1]])


@triton.jit
def _share(weights, AXIS: tl.constexpr):
    """1 / their sum along an axis, which is kept; lines that no window has may see nothing at all."""
    return 1.0 / tl.maximum(tl.sum(weights, AXIS, keep_dims=True), 1e-6)


@triton.jit
def _mix(
    between, rows, points, group, first, NUM: tl.constexpr, size, plane, blocks, lattice,
    RED: tl.constexpr, GREEN: tl.constexpr, BLUE: tl.constexpr, HALF: tl.constexpr,
    COLUMNS: tl.constexpr, PART: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Lines `rows` of the group at `points`, which are among the NUM from `first` on: int32 [rows, points], whose lowest bytes
    are red, green and blue."""
    ROWS: tl.constexpr = rows.shape[0]
    POINTS: tl.constexpr = points.shape[0]
    num, middle = lattice[1], lattice[4]
    start, written = _seen(group, middle, size, lattice, TILE)
    written = tl.minimum((written - start + COLUMNS - 1) // COLUMNS, blocks) * COLUMNS
    begin, end = _span(first, tl.minimum(first + NUM, num) - 1, middle, lattice)
    # Sixteen bytes are read at a time.
    begin = tl.multiple_of(tl.maximum(begin - start, 0) // 8 * 8, 8)
    between += rows[:, None] * (blocks * COLUMNS)
    y = tl.zeros((ROWS, POINTS), tl.float32)
    b = tl.zeros((ROWS, POINTS), tl.float32)
    r = tl.zeros((ROWS, POINTS), tl.float32)
    luma_sums = tl.zeros((PART, POINTS), tl.float32)
    colour_sums = tl.zeros((PART, POINTS), tl.float32)
    for column in range(begin, tl.minimum(end - start, written), PART):
        columns = column + tl.arange(0, PART)
        here = (rows < num)[:, None] & (columns < written)[None, :]
        at = between + columns[None, :]
        luma = tl.load(at, mask=here, other=0)
        blue = tl.load(at + plane, mask=here, other=0)
        red = tl.load(at + 2 * plane, mask=here, other=0)
        luma_weights, colour_weights = _weights(start + columns[:, None], points[None, :], middle, lattice)
        luma_sums += luma_weights
        colour_sums += colour_weights
        y = tl.dot(luma, luma_weights, y)
        b = tl.dot(blue, colour_weights, b)
        r = tl.dot(red, colour_weights, r)
    y = y * _share(luma_sums, 0) + (_GREY + HALF)
    colour_share = _share(colour_sums, 0)
    b *= colour_share
    r *= colour_share
    green = y - r * (RED / GREEN) - b * (BLUE / GREEN)
    return _byte(y + r) | (_byte(green) << 8) | (_byte(y + b) << 16)


@triton.jit
def _byte(value):
    return tl.minimum(tl.maximum(value, 0.0), 255.0).to(tl.int32)


@triton.jit
def _diamond(n, line, column, size, TILE: tl.constexpr):
    """2 * TILE lines from `line` on and as many columns hold a diamond of the window. Any two rows of it that are TILE apart have
    2 * TILE pixels together: line i shows one of the n-th two in column i - length, cyclically, where length is the shorter
    row's. Where it stands among the pixels of the even and the odd lines, and its row and column in the window."""
    i = tl.arange(0, 2 * TILE)[None, :]
    j = (i - 2 * n - (size - 1) % 2) & (2 * TILE - 1)
    which = (i // 2 * TILE + j // 2) * 2 + i % 2
    down, across = line + i, column + j
    return which, (down - across + size - 1) >> 1, (down + across - size + 1) >> 1


@triton.jit
def _store(out, pixels, rows, columns, size):
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    out += (rows * size + columns) * 3
    tl.store(out, pixels.to(tl.uint8), mask=inside)
    tl.store(out + 1, (pixels >> 8).to(tl.uint8), mask=inside)
    tl.store(out + 2, (pixels >> 16).to(tl.uint8), mask=inside)


def _variants() -> list[Variant]:
    sizes = {name: "i32" for name in ("first_image", "height", "width", "size", "blocks", "lines")}
    both = {"boxes": "*i32:16", "between": "*fp16:16", "COLUMNS": _COLUMNS, "PART": _PART, "TILE": _TILE}
    both |= _constants()
    vertical = both | sizes | {"images": "*u8:16", "LINES": _LINES}
    few = {name: sizes[name] for name in ("first_image", "size", "blocks", "lines")}
    return [
        Variant("windows, first pass", vertical_kernel, vertical, _VERTICAL_WARPS),
        Variant(
            "windows, second pass",
            horizontal_kernel,
            both | few | {"out": "*u8:16", "STORED": _STORED},
            _HORIZONTAL_WARPS,
        ),
    ]


VARIANTS = _variants()
