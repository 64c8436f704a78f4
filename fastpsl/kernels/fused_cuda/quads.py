"""Pixels in fours: parts of kernels that write three channels, side by side, in memory's order.

Four neighbouring pixels of the result are 12 values. They are written side by side, so a warp writes 8 quads
of float16, 192 bytes without a gap. A store per channel would send every sector of 32 bytes to the cache
three times, each time with gaps. Bytes are loaded with any step between the pixels, so mirrored and turned
images are read directly.
"""

import triton
import triton.language as tl

# mypy: disable-error-code="no-untyped-def"


@triton.jit
def load_quads(images, at, step, along, by, length, inside, factors, dtype: tl.constexpr):
    """Load four pixels, `step` apart, from the pixels `at` on: red, green, blue of each.

    A value is x * factors[c] + factors[3 + c]. The pixels' numbers along the quads are `along`, `along + by`
    and so on. Pixels are black if the number is not in 0 to `length` - 1, or if `inside` is False.
    """
    first = _pixels(images, at, inside & _below(along, length), factors, dtype)
    second = _pixels(images, at + step, inside & _below(along + by, length), factors, dtype)
    third = _pixels(images, at + 2 * step, inside & _below(along + 2 * by, length), factors, dtype)
    fourth = _pixels(images, at + 3 * step, inside & _below(along + 3 * by, length), factors, dtype)
    return first, second, third, fourth


@triton.jit
def _below(number, length: tl.constexpr):
    """Return 0 <= number < length by one comparison: as unsigned, a negative number is large."""
    return number.to(tl.uint32) < length


@triton.jit
def _pixels(images, at, inside, factors, dtype: tl.constexpr):
    at = images + at * 3
    red = tl.load(at, mask=inside, other=0).to(tl.float32) * factors[0] + factors[3]
    green = tl.load(at + 1, mask=inside, other=0).to(tl.float32) * factors[1] + factors[4]
    blue = tl.load(at + 2, mask=inside, other=0).to(tl.float32) * factors[2] + factors[5]
    return red.to(dtype), green.to(dtype), blue.to(dtype)


@triton.jit
def quads_of(red, green, blue, dtype: tl.constexpr):
    """Return the four pixels of three channels [R, Q, 4] as `load_quads` does."""
    r_0, r_1, r_2, r_3 = _apart(red.to(dtype))
    g_0, g_1, g_2, g_3 = _apart(green.to(dtype))
    b_0, b_1, b_2, b_3 = _apart(blue.to(dtype))
    return (r_0, g_0, b_0), (r_1, g_1, b_1), (r_2, g_2, b_2), (r_3, g_3, b_3)


@triton.jit
def _apart(x):
    even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1], 2, 2]))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return a, b, c, d


@triton.jit
def side_by_side(quads, BACKWARDS: tl.constexpr):
    """Arrange the 12 values of four pixels [R, Q] as [R, Q, 2, 2, 2, 2].

    The four binary digits of a value's number are its last four indices; 12 to 15 are unused. BACKWARDS puts
    the fourth pixel first.
    """
    a, b, c, d = quads
    if BACKWARDS:
        d, c, b, a = quads
    # Each join adds the next digit: the first puts value 0 beside 8, the last 0 beside 1.
    even = tl.join(
        tl.join(tl.join(a[0], c[2]), tl.join(b[1], b[1])), tl.join(tl.join(a[2], d[1]), tl.join(c[0], c[0]))
    )
    odd = tl.join(
        tl.join(tl.join(a[1], d[0]), tl.join(b[2], b[2])), tl.join(tl.join(b[0], d[2]), tl.join(c[1], c[1]))
    )
    return tl.join(even, odd)


@triton.jit
def store_quads(
    out, values, row, row_step, column, quad_step, height, width, ROWS: tl.constexpr, QUADS: tl.constexpr
):
    """Store values [ROWS, QUADS, 2, 2, 2, 2] in an image, from `row` and `column` on.

    Values outside the image are left out.
    """
    rows = (row + row_step * tl.arange(0, ROWS))[:, None]
    number = tl.arange(0, QUADS * 16)
    within = (number % 16)[None, :]
    places = 3 * (column + quad_step * (number // 16))[None, :] + within
    inside = (rows >= 0) & (rows < height) & (within < 12) & (places >= 0) & (places < 3 * width)
    tl.store(out + rows * (3 * width) + places, tl.reshape(values, [ROWS, QUADS * 16]), mask=inside)
