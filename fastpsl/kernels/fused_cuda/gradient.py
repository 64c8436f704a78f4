"""The grey image's gradients directly from its bytes: kernels/{flip,sobel_xy,normalise}.py in one launch.

This is for views without colour and blur. The cost for 256 samples of 224 px (12.8 Mpx), counted as in
photometric.py and not measured: uint8 once and two halves per pixel are 90 MB, 0.021 ms; 40 instructions per
pixel are 0.017 ms. A thread makes four pixels side by side, goes down its columns and keeps the two rows
above. So it loads six words per row for four pixels and their neighbours, and a quarter more at the ends of
the walk. Byte by byte, these would be 36 loads.
"""

import triton
import triton.language as tl

from fastpsl.kernels.fused_cuda.colour import tile_of_program
from fastpsl.kernels.fused_cuda.planes import INTEGERS_BITS, in_turn, joined

# mypy: disable-error-code="no-untyped-def"

# The scale of sums of bytes over three colours with weights that add up to 8.
SUMS_SCALE = tl.constexpr(1 / (3 * 255 * 8))


@triton.jit
def load_sums(words, at, num_words, x, width):
    """Load R + G + B, plus 2^23, of the pixels x - 1 to x + 4 from the bytes `at` on, each float32 [R, Q].

    They are 18 bytes of six words. Beyond the borders of the row, a pixel has the sum of its neighbour.
    """
    word = at >> 2
    words += word
    a, b = tl.load(words, mask=word >= 0, other=0), tl.load(words + 1)
    c = tl.load(words + 2, mask=word + 2 < num_words, other=0)
    d = tl.load(words + 3, mask=word + 3 < num_words, other=0)
    e = tl.load(words + 4, mask=word + 4 < num_words, other=0)
    f = tl.load(words + 5, mask=word + 5 < num_words, other=0)
    shift = (at & 3).to(tl.uint32) * 8
    a, b, c = joined(a, b, shift), joined(b, c, shift), joined(c, d, shift)
    d, e = joined(d, e, shift), joined(e, f, shift)
    first = _sum(a >> 24, b, b >> 8)
    before = tl.where(x == 0, first, _sum(a, a >> 8, a >> 16))
    second = tl.where(x + 1 < width, _sum(b >> 16, b >> 24, c), first)
    third = tl.where(x + 2 < width, _sum(c >> 8, c >> 16, c >> 24), second)
    fourth = tl.where(x + 3 < width, _sum(d, d >> 8, d >> 16), third)
    after = tl.where(x + 4 < width, _sum(d >> 24, e, e >> 8), fourth)
    return before, first, second, third, fourth, after


@triton.jit
def _sum(red, green, blue):
    """Return the sum of the lowest bytes plus 2^23 as float32, of which differences are exact."""
    return ((red & 255) + (green & 255) + (blue & 255) | INTEGERS_BITS).to(tl.float32, bitcast=True)


@triton.jit
def _gradients(above, here, below, NUMBER: tl.constexpr):
    """Return 8 gx and 8 gy of a pixel: differences [-1 0 1] along one axis, sums [1 2 1] along the other."""
    left: tl.constexpr = NUMBER
    x: tl.constexpr = NUMBER + 1
    right: tl.constexpr = NUMBER + 2
    gx = (above[right] - above[left]) + 2 * (here[right] - here[left]) + (below[right] - below[left])
    gy = (below[left] - above[left]) + 2 * (below[x] - above[x]) + (below[right] - above[right])
    return gx, gy


@triton.jit
def store_pairs(to, gx, gy, inside):
    """Store two channels side by side at pointers to the first of them, with one store per pixel."""
    pairs = tl.join(gx, gy).to(to.dtype.element_ty)
    tl.store(to[:, :, None] + tl.arange(0, 2)[None, None, :], pairs, mask=inside[:, :, None])


@triton.jit
def gradient_pass(
    images, out, flip, height, width, scale_0, scale_1, shift_0, shift_1,
    TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Compute a tile of TILE x TILE pixels per program; a thread goes down ROWS of its rows.

    `images` is uint8 [B, H, W, 3], `out` [B, H, W, 2], `flip` None if the view has none. The address of
    `images` is a multiple of four.
    """
    sample, y_0, x_0 = tile_of_program(tl.program_id(0), height, width, TILE)
    y = y_0 + ROWS * tl.arange(0, TILE // ROWS)[:, None]
    x = tl.minimum(x_0 + 4 * tl.arange(0, TILE // 4)[None, :], (width - 1) // 4 * 4)
    value = tl.arange(0, 2 * TILE)[None, :]
    start = x_0 + value // 8 * 4
    # Pixels are read unmirrored and written mirrored, as in colour_pass. A mirror changes the sign of gx.
    mirrored = False
    if flip is not None:
        mirrored = tl.load(flip + sample)
    if mirrored:
        start = width - 4 - start
        scale_0 = -scale_0
    scale_0, scale_1 = scale_0 * SUMS_SCALE, scale_1 * SUMS_SCALE
    place = 2 * start + value % 8
    inside = (place >= 0) & (place < 2 * width)
    size = height * width * 3
    words = images.to(tl.pointer_type(tl.uint32), bitcast=True) + sample * size // 4
    skip = (sample * size % 4).to(tl.int32)
    num_words = (skip + size + 3) // 4
    at = skip - 3 + x * 3
    last_y = height - 1
    above = load_sums(words, at + tl.minimum(tl.maximum(y - 1, 0), last_y) * width * 3, num_words, x, width)
    here = load_sums(words, at + tl.minimum(y, last_y) * width * 3, num_words, x, width)
    out += sample * height * width * 2 + place
    for _ in tl.static_range(ROWS):
        below = load_sums(words, at + tl.minimum(y + 1, last_y) * width * 3, num_words, x, width)
        a, b = _gradients(above, here, below, 0), _gradients(above, here, below, 1)
        c, d = _gradients(above, here, below, 2), _gradients(above, here, below, 3)
        if mirrored:
            a, b, c, d = d, c, b, a
        gx = in_turn(a[0], b[0], c[0], d[0]) * scale_0 + shift_0
        gy = in_turn(a[1], b[1], c[1], d[1]) * scale_1 + shift_1
        pairs = tl.reshape(tl.join(gx, gy), [TILE // ROWS, 2 * TILE])
        tl.store(out + y * width * 2, pairs.to(out.dtype.element_ty), mask=(y < height) & inside)
        above, here = here, below
        y += 1
