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
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpsl.kernels.fused_cuda.lattice import (
    columns_seen,
    diamond,
    half_width,
    lattice_of,
    share,
    span,
    weights,
)
from fastpsl.kernels.fused_cuda.planes import load_planes, store_pixels, to_pixels

# mypy: disable-error-code="no-untyped-def"

# In the first pass a program makes LINES lines of COLUMNS source columns. Both passes add up PART source
# pixels at a time.
LINES, COLUMNS, PART = tl.constexpr(32), tl.constexpr(128), tl.constexpr(16)
# In the second pass a program makes TILE points of each of a group of GROUP = 2 * TILE lines, and stores
# STORED of TILE rows at a time.
TILE, GROUP, STORED = tl.constexpr(32), tl.constexpr(64), tl.constexpr(8)
_VERTICAL_WARPS, _HORIZONTAL_WARPS = 8, 4
# The memory between the passes limits the number of images per launch.
_BETWEEN_BYTES = 64 << 20


def crop(images: Tensor, boxes: Tensor, size_px: int) -> Tensor:
    """Compute `crop_isotropic` on CUDA.

    Args:
        images: uint8 [B, H, W, 3].
        boxes: Integers [B, 5].
        size_px: The side of the windows.

    Returns:
        uint8 [B, size_px, size_px, 3].
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

    Args:
        pixels: uint8 [N]: RGB images, their rows one after the other.
        places: int64 [B, 3]: where each image begins in `pixels`, its height and its width.
        boxes: Integers [B, 5], in pixels of their images.
        size_px: The side of the windows.
        widest_px: The width of the widest image.

    Returns:
        uint8 [B, size_px, size_px, 3].
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
