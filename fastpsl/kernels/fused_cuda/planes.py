"""Conversions of RGB bytes to luma and colour in half precision and back (kernels/isotropic.py).

The functions are parts of kernels. Luma is stored minus 128, colour as blue - luma and red - luma, because
halves are finest around 0.
"""

import triton
import triton.language as tl

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
