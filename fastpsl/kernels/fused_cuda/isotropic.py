"""The windows of kernels/isotropic.py on a GPU: two banded matrix products per image, on tensor cores.

vertical_kernel     bytes to luma and colour, weighted along columns: half [3 planes, lines, source columns]
horizontal_kernel   these, weighted along rows, to the bytes of the window

Images may have several sizes: each has a place in one piece of memory. A batch of equal ones is a case of it.

Both windows are separable on an upright lattice. So a tile of points takes a tile of weights, computed where
it is used, for the source pixels that it sees. A turned window needs every second point of its lattice: even
lines take columns of one parity, odd lines those of the other, and each is a lattice of its own. A tile of
both is a diamond of the window.

Weights, luma, colour and the values between the passes are rounded to half precision, sums are not. The
rounded weights are normalised to sum to 1, so a flat image stays flat. For white noise 0.4 % of the bytes
differ from `isotropic_resize`, by one level. The probe of tests/pipelines/test_rotation_leak.py cannot tell
the angle (6,000 views of noise: 50 and 51 %, against 51 and 52 % for isotropic_resize). With bfloat16, which
has an eighth of the precision, it can (57 and 66 %).

Not measured. Estimates on an H200 for 256 windows of 224 px, upright and turned, from images of 375 x 500, of
which they see 331 px:

    bytes      84 MB of source, 39 MB written. Between the passes 88 and 189 MB, in parts of _BETWEEN_BYTES,
               which stay in a large L2 cache: 0.03 ms at 4.25 TB/s. Through that cache go 0.4 and 0.6 GB:
               0.07 and 0.11 ms at 5.5 TB/s
    products   5.6e9 and 8.4e9 multiply-adds, including the tiles' zeros: 0.03 and 0.04 ms at 4e14 operations
               a second. crop_isotropic's dense form has 8.8e10, in float32: 2.9 ms at 6e13 for either
    issue      the code for sm_90 has 1.0e8 and 2.0e8 instructions of a warp: 0.11 and 0.21 ms if each of the
               528 schedulers always had one. This is the limit. A third or half again as much would be usual

Luma is stored minus 128, colour as blue - luma and red - luma, because halves are finest around 0. Lines and
columns of a turned window count from 0 to 2 * size - 2, and every second crossing of them is a point.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpsl.kernels import isotropic

# mypy: disable-error-code="no-untyped-def"

RED, GREEN, BLUE = (tl.constexpr(float(x)) for x in (isotropic.RED, isotropic.GREEN, isotropic.BLUE))
# Added before rounding to the nearest, so that halves go up.
NUDGE = tl.constexpr(float(isotropic.HALF) - 0.5)
GREY = tl.constexpr(128.0)
# From here on float32 numbers are integers, and a byte above it is in the lowest bits. A conversion would
# take eight times as long.
INTEGERS = tl.constexpr(2.0**23)
INTEGERS_BITS = tl.constexpr(0x4B000000)


@triton.jit
def load_planes(words, at, num_words):
    """Load luma, blue and red, float16 [R, 4 * Q]: four pixels from each of the bytes `at` [R, Q] on.

    Four pixels are twelve bytes, loaded as the four words that contain them. Bytes outside the image read as
    zero, and so do its last pixels, which no window sees.
    """
    first = at >> 2
    here = first + 3 < num_words
    words += first
    a, b = tl.load(words, mask=here, other=0), tl.load(words + 1, mask=here, other=0)
    c, d = tl.load(words + 2, mask=here, other=0), tl.load(words + 3, mask=here, other=0)
    shift = (at & 3).to(tl.uint32) * 8
    a, b, c = joined(a, b, shift), joined(b, c, shift), joined(c, d, shift)
    p, q = _planes(a, a >> 8, a >> 16), _planes(a >> 24, b, b >> 8)
    r, s = _planes(b >> 16, b >> 24, c), _planes(c >> 8, c >> 16, c >> 24)
    return (
        in_turn(p[0], q[0], r[0], s[0]),
        in_turn(p[1], q[1], r[1], s[1]),
        in_turn(p[2], q[2], r[2], s[2]),
    )


@triton.jit
def joined(low, high, shift):
    """Return the four bytes from bit `shift` of `low` on, with `shift` 0, 8, 16 or 24."""
    return (low >> shift) | ((high << 1) << (shift ^ 31))


@triton.jit
def _planes(red, green, blue):
    red, green, blue = _level(red), _level(green), _level(blue)
    luma = red * RED + green * GREEN + blue * BLUE
    return luma.to(tl.float16), (blue - luma).to(tl.float16), (red - luma).to(tl.float16)


@triton.jit
def _level(word):
    """Return the lowest byte minus 128 as float32."""
    return ((word & 255) | INTEGERS_BITS).to(tl.float32, bitcast=True) - (INTEGERS + GREY)


@triton.jit
def in_turn(a, b, c, d):
    """Interleave four [R, Q] into [R, 4 * Q]: the first of each, the second of each, and so on."""
    values = tl.join(tl.join(a, c), tl.join(b, d))
    return tl.reshape(values, [a.shape[0], 4 * a.shape[1]])


@triton.jit
def to_pixels(y, b, r, luma_share, colour_share):
    """Return int32 with red, green and blue in the lowest bytes.

    The arguments are the weighted sums of luma, blue and red, and 1 / the sums of the weights.
    """
    y = y * luma_share + (GREY + NUDGE)
    green = y - r * (colour_share * (RED / GREEN)) - b * (colour_share * (BLUE / GREEN))
    return _byte(y + r * colour_share) | (_byte(green) << 8) | (_byte(y + b * colour_share) << 16)


@triton.jit
def _byte(value):
    """Return the nearest integer from 0 to 255; above its eight bits only the highest eight are nonzero."""
    return (tl.minimum(tl.maximum(value, 0.0), 255.0) + INTEGERS).to(tl.int32, bitcast=True)


@triton.jit
def store_pixels(out, pixels, rows, columns, size):
    """Store pixels in an image, uint8 [size, size, 3], except those outside it."""
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    out += (rows * size + columns) * 3
    tl.store(out, pixels.to(tl.uint8), mask=inside)
    tl.store(out + 1, (pixels >> 8).to(tl.uint8), mask=inside)
    tl.store(out + 2, (pixels >> 16).to(tl.uint8), mask=inside)


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


# In the first pass a program makes LINES lines of COLUMNS source columns. Both passes add up PART source
# pixels at a time.
LINES, COLUMNS, PART = tl.constexpr(32), tl.constexpr(128), tl.constexpr(16)
# In the second pass a program makes TILE points of each of a group of GROUP = 2 * TILE lines, and stores
# STORED of TILE rows at a time.
TILE, GROUP, STORED = tl.constexpr(32), tl.constexpr(64), tl.constexpr(8)
_VERTICAL_WARPS, _HORIZONTAL_WARPS = 8, 4  # none of these sizes was tuned on a GPU
# The memory between the passes limits the number of images per launch: about what a large L2 cache holds,
# from which the second pass reads (not measured).
_BETWEEN_BYTES = 64 << 20


def crop(images: Tensor, boxes: Tensor, size_px: int) -> Tensor:
    """Compute `crop_isotropic` on CUDA.

    `images` is uint8 [B, H, W, 3], `boxes` are integers [B, 5]. The result is uint8 [B, size_px, size_px, 3].
    """
    num, height, width, channels = images.shape
    assert channels == 3, images.shape
    places = boxes.new_empty(num, 3, dtype=torch.int64)
    places[:, 0] = torch.arange(num, device=boxes.device) * (height * width * 3)
    places[:, 1], places[:, 2] = height, width
    return crop_ragged(images.reshape(-1), places, boxes, size_px, width)


def crop_ragged(pixels: Tensor, places: Tensor, boxes: Tensor, size_px: int, widest_px: int) -> Tensor:
    """Crop images of several sizes, which lie in one piece of memory.

    Windows of boxes that do not fit are undefined, but no memory outside the images is read for them.

    The arguments are those of kernels/device_crops.py. The result is uint8 [B, size_px, size_px, 3].
    """
    num = len(boxes)
    assert pixels.dtype == torch.uint8 and pixels.ndim == 1, (pixels.dtype, pixels.shape)
    assert places.dtype == torch.int64 and places.shape == (num, 3), (places.dtype, places.shape)
    assert boxes.shape == (num, 5), boxes.shape
    out = pixels.new_empty(num, size_px, size_px, 3)
    if not out.numel():
        return out
    pixels, boxes = pixels.contiguous(), boxes.to(torch.int32).contiguous()
    if pixels.data_ptr() % 4:  # because the kernel reads words
        pixels = pixels.clone()
    groups, blocks = triton.cdiv(size_px, TILE.value), triton.cdiv(widest_px, COLUMNS.value)
    lines, row = groups * GROUP.value, blocks * COLUMNS.value
    at_a_time = triton.cdiv(num, triton.cdiv(num, max(1, _BETWEEN_BYTES // (6 * lines * row))))
    between = pixels.new_empty(at_a_time, 3, lines, row, dtype=torch.float16)
    with torch.cuda.device_of(pixels):  # because threads do not inherit the device
        for first in range(0, num, at_a_time):
            num_here = min(at_a_time, num - first)
            vertical_kernel[(blocks, lines // LINES.value, num_here)](
                pixels, places, boxes, between, first, size_px, blocks, lines, num_warps=_VERTICAL_WARPS
            )
            horizontal_kernel[(groups, groups, num_here)](
                between, boxes, out, first, size_px, blocks, lines, num_warps=_HORIZONTAL_WARPS
            )
    return out


@triton.jit(do_not_specialize=["first_image", "size", "blocks", "lines"])
def vertical_kernel(pixels, places, boxes, between, first_image, size, blocks, lines):
    """Compute LINES lines of COLUMNS source columns per program, among those that the lines' group sees."""
    block, line, number = tl.program_id(0), tl.program_id(1) * LINES, tl.program_id(2)
    image = (first_image + number).to(tl.int64)
    lattice = lattice_of(boxes + image * 5, size)
    num, top = lattice[1], lattice[3]
    start, end = columns_seen(line // GROUP, size, lattice, GROUP)
    if (line >= num) | (start + block * COLUMNS >= end):
        return
    columns = start + block * COLUMNS + 4 * tl.arange(0, COLUMNS // 4)[None, :]
    place = places + image * 3
    offset, height, width = tl.load(place), tl.load(place + 1).to(tl.int32), tl.load(place + 2).to(tl.int32)
    words = pixels.to(tl.pointer_type(tl.uint32), bitcast=True) + offset // 4
    skip = (offset % 4).to(tl.int32)
    num_words = (skip + height * width * 3 + 3) // 4
    points = line + tl.arange(0, LINES)[:, None]
    first, last = span(line, tl.minimum(line + LINES, num) - 1, top, lattice)
    y = tl.zeros((LINES, COLUMNS), tl.float32)
    b = tl.zeros((LINES, COLUMNS), tl.float32)
    r = tl.zeros((LINES, COLUMNS), tl.float32)
    luma_sums = tl.zeros((LINES, PART), tl.float32)
    colour_sums = tl.zeros((LINES, PART), tl.float32)
    for row in range(tl.maximum(first, 0), tl.minimum(last, height), PART):
        rows = row + tl.arange(0, PART)
        luma, blue, red = load_planes(words, skip + (rows[:, None] * width + columns) * 3, num_words)
        luma_weights, colour_weights = weights(rows[None, :], points, top, lattice)
        luma_sums += luma_weights
        colour_sums += colour_weights
        y = tl.dot(luma_weights, luma, y)
        b = tl.dot(colour_weights, blue, b)
        r = tl.dot(colour_weights, red, r)
    luma_share, colour_share = share(luma_sums, 1), share(colour_sums, 1)
    plane = lines * (blocks * COLUMNS)
    to = between + number.to(tl.int64) * (3 * plane) + points * (blocks * COLUMNS)
    to += block * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(to, (y * luma_share).to(tl.float16))
    tl.store(to + plane, (b * colour_share).to(tl.float16))
    tl.store(to + 2 * plane, (r * colour_share).to(tl.float16))


@triton.jit(do_not_specialize=["first_image", "size", "blocks", "lines"])
def horizontal_kernel(between, boxes, out, first_image, size, blocks, lines):
    """Compute GROUP rows of TILE columns of an upright window per program.

    Of a turned window a program makes TILE even and TILE odd lines with TILE points each.
    """
    tile, group, number = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    image = (first_image + number).to(tl.int64)
    lattice = lattice_of(boxes + image * 5, size)
    plane = lines * (blocks * COLUMNS)
    source = (between + number.to(tl.int64) * (3 * plane), plane, blocks, group, size)
    out += image * (size * size * 3)
    turned, line, points = lattice[0], group * GROUP, tl.arange(0, TILE)
    # The first column in which the group's lines have points of a turned window; it is even, as lines are.
    half = half_width(group, size, GROUP)
    column = tl.where(turned, (size - 1 - half) // 2 * 2 + tile * GROUP, tile * TILE)
    if tl.where(turned, column >= size + half, line >= size):
        return
    if turned:
        # A line and a column cross in a point if their sum has the parity of size - 1.
        odd = (size - 1) % 2
        even_lines = _mixed(line + 2 * points, column + odd + 2 * points, column, GROUP, source, lattice)
        odd_lines = _mixed(
            line + 1 + 2 * points, column + 1 - odd + 2 * points, column, GROUP, source, lattice
        )
        pixels = tl.reshape(tl.join(even_lines, odd_lines), [GROUP * TILE])
    else:
        pixels = _mixed(line + tl.arange(0, GROUP), column + points, column, TILE, source, lattice)
        pixels = tl.reshape(pixels, [GROUP * TILE])
    # Pixels are stored in the order of their addresses, a few at a time.
    for first in range(0, TILE, STORED):
        n = first + tl.arange(0, STORED)[:, None]
        if turned:
            which, rows, columns = diamond(n, line, column, size, TILE)
        else:
            which = n * GROUP + tl.arange(0, GROUP)[None, :]
            rows, columns = line + which // TILE, column + which % TILE
        values = tl.gather(pixels, tl.reshape(which, [GROUP * STORED]), 0)
        store_pixels(out, tl.reshape(values, [STORED, GROUP]), rows, columns, size)


@triton.jit
def _mixed(rows, points, first, NUM: tl.constexpr, source, lattice):
    """Return int32 [rows, points]: pixels of the lines `rows` at `points`, among the NUM from `first` on."""
    between, plane, blocks, group, size = source
    num, left = lattice[1], lattice[4]
    start, written = columns_seen(group, size, lattice, GROUP)
    written = tl.minimum((written - start + COLUMNS - 1) // COLUMNS, blocks) * COLUMNS
    begin, end = span(first, tl.minimum(first + NUM, num) - 1, left, lattice)
    # Aligned because sixteen bytes are read at a time.
    begin = tl.multiple_of(tl.maximum(begin - start, 0) // 8 * 8, 8)
    between += rows[:, None] * (blocks * COLUMNS)
    y = tl.zeros((rows.shape[0], points.shape[0]), tl.float32)
    b = tl.zeros((rows.shape[0], points.shape[0]), tl.float32)
    r = tl.zeros((rows.shape[0], points.shape[0]), tl.float32)
    luma_sums = tl.zeros((PART, points.shape[0]), tl.float32)
    colour_sums = tl.zeros((PART, points.shape[0]), tl.float32)
    for column in range(begin, tl.minimum(end - start, written), PART):
        columns = column + tl.arange(0, PART)
        here = (rows < num)[:, None] & (columns < written)[None, :]
        at = between + columns[None, :]
        luma = tl.load(at, mask=here, other=0)
        blue = tl.load(at + plane, mask=here, other=0)
        red = tl.load(at + 2 * plane, mask=here, other=0)
        luma_weights, colour_weights = weights(start + columns[:, None], points[None, :], left, lattice)
        luma_sums += luma_weights
        colour_sums += colour_weights
        y = tl.dot(luma, luma_weights, y)
        b = tl.dot(blue, colour_weights, b)
        r = tl.dot(red, colour_weights, r)
    return to_pixels(y, b, r, share(luma_sums, 0), share(colour_sums, 0))
