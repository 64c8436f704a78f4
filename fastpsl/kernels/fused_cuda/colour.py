"""Colour on the GPU: kernels/{colour,grey,lightness}.py in registers, and the two passes that use it.

mean_pass     the grey mean that each sample's contrast needs, as sums of blocks
colour_pass   flip, colour distortion, grey and lightness of uint8 images

colour_pass writes normalised values. For samples with a blur or Sobel it writes values in [0, 1] to a planar
buffer for the neighbourhood pass. For SobelXY it writes the mean of the three channels minus 0.5 there.

A program works on one sample, so each choice that depends on the sample's draws is a branch for the whole
program. It works on units of PIXELS pixels. A unit of four is three words of the image, eight bytes of a
plane of halves and 24 bytes of the result. Units are of one pixel if rows are not whole words. Clamps to
[0, 1] are free: they are the .SAT of the preceding multiply-add.
"""

import triton
import triton.language as tl

from fastpsl.kernels.fused_cuda.quads import quads_of, side_by_side, store_quads

# mypy: disable-error-code="no-untyped-def"

# The numbers of the blends in the draws' order (kernels/colour.py).
BRIGHTNESS = tl.constexpr(0)
CONTRAST = tl.constexpr(1)
SATURATION = tl.constexpr(2)

UNIT = tl.constexpr(1 / 255)
BYTE = tl.constexpr(0xFF0000)
BYTE_UNIT = tl.constexpr(2.0**133 / 255)
# kernels/colour.py: ITU-R 601.
LUMA_RED = tl.constexpr(0.2989)
LUMA_GREEN = tl.constexpr(0.587)
LUMA_BLUE = tl.constexpr(0.114)
# Less than any difference of two unequal channels.
TINY = tl.constexpr(1e-30)
# Hues are in sixths of a turn.
TURN = tl.constexpr(6.0)
RED_HUE = tl.constexpr(3.0)  # cyan, where red is smallest
GREEN_HUE = tl.constexpr(2.0)
BLUE_HUE = tl.constexpr(4.0)
# kernels/lab.py: sRGB's curve, its weights of Y, CIE 1976 L*.
LINEAR_BELOW = tl.constexpr(0.04045)
LINEAR_SLOPE = tl.constexpr(1 / 12.92)
GAMMA_OFFSET = tl.constexpr(0.055)
GAMMA_SLOPE = tl.constexpr(1 / 1.055)
GAMMA = tl.constexpr(2.4)
Y_RED = tl.constexpr(0.2126)
Y_GREEN = tl.constexpr(0.7152)
Y_BLUE = tl.constexpr(0.0722)
CUBE_ABOVE = tl.constexpr((6 / 29) ** 3)
CUBE_ROOT = tl.constexpr(1 / 3)
DARK_SLOPE = tl.constexpr(1 / (3 * (6 / 29) ** 2))
DARK_OFFSET = tl.constexpr(4 / 29)
L_SLOPE = tl.constexpr(1.16)
L_OFFSET = tl.constexpr(0.16)
# kernels/filters.py: grey is the mean. Halves are finest around 0, and gradients do not depend on the level.
THIRD = tl.constexpr(1 / 3)
LEVEL = tl.constexpr(0.5)


@triton.jit
def clamp01(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def luma(r, g, b):
    return r * LUMA_RED + g * LUMA_GREEN + b * LUMA_BLUE


@triton.jit
def blend(r, g, b, other, factor):
    """Return x * factor + other * (1 - factor), clamped to [0, 1]."""
    rest = other * (1.0 - factor)
    return clamp01(r * factor + rest), clamp01(g * factor + rest), clamp01(b * factor + rest)


@triton.jit
def shift_hue(r, g, b, turns):
    """Return the pixels with hue moved by `turns`, -0.5 to 0.5; ties are as in kernels/colour.py."""
    value = tl.maximum(tl.maximum(r, g), b)
    low = tl.minimum(tl.minimum(r, g), b)
    chroma = value - low
    # 1 / chroma takes one instruction and a product, where a division takes seven. A grey pixel has no hue,
    # so any value will do.
    root = tl.rsqrt(chroma + TINY)
    is_red, is_green = value == r, value == g
    difference = tl.where(is_red, g - b, tl.where(is_green, b - r, r - g))
    # The hue is in -1 to 5. Moved by 1 to 7 it is in 0 to 12, and one comparison brings it to 0 to 6.
    move = turns * TURN
    move = tl.where(move < 1.0, move + TURN, move)
    start = tl.where(is_red, move, tl.where(is_green, move + GREEN_HUE, move + BLUE_HUE))
    hue = start + difference * (root * root)
    hue = tl.where(hue >= TURN, hue - TURN, hue)
    r = low + chroma * clamp01(tl.abs(hue - RED_HUE) - 1.0)
    g = value - chroma * clamp01(tl.abs(hue - GREEN_HUE) - 1.0)
    b = value - chroma * clamp01(tl.abs(hue - BLUE_HUE) - 1.0)
    return r, g, b


@triton.jit
def load_draw(order, factors):
    """Load a sample's four operations, two bits each, the first lowest, and the factors by operation."""
    first, second = tl.load(order).to(tl.int32), tl.load(order + 1).to(tl.int32)
    third, last = tl.load(order + 2).to(tl.int32), tl.load(order + 3).to(tl.int32)
    ops = first | (second << 2) | (third << 4) | (last << 6)
    return ops, tl.load(factors), tl.load(factors + 1), tl.load(factors + 2), tl.load(factors + 3)


@triton.jit
def distort(r, g, b, draw, num_ops, mean, HUE: tl.constexpr):
    """Run a sample's first `num_ops` operations in its order; `mean` is the grey image's, for contrast."""
    ops, brightness, contrast, saturation, turns = draw
    for _ in range(num_ops):
        op = ops & 3
        ops >>= 2
        if op == BRIGHTNESS:
            r, g, b = blend(r, g, b, 0.0, brightness)
        elif op == CONTRAST:
            r, g, b = blend(r, g, b, mean, contrast)
        elif op == SATURATION:
            r, g, b = blend(r, g, b, luma(r, g, b), saturation)
        elif HUE:
            r, g, b = shift_hue(r, g, b, turns)
    return r, g, b


@triton.jit
def to_linear(v):
    curve = tl.exp2(tl.log2((v + GAMMA_OFFSET) * GAMMA_SLOPE) * GAMMA)
    return tl.where(v <= LINEAR_BELOW, v * LINEAR_SLOPE, curve)


@triton.jit
def lightness(r, g, b):
    y = to_linear(r) * Y_RED + to_linear(g) * Y_GREEN + to_linear(b) * Y_BLUE
    root = tl.exp2(tl.log2(tl.maximum(y, CUBE_ABOVE)) * CUBE_ROOT)
    return clamp01(tl.where(y > CUBE_ABOVE, root, y * DARK_SLOPE + DARK_OFFSET) * L_SLOPE - L_OFFSET)


@triton.jit
def load_rgb(images, at, mirrored, PIXELS: tl.constexpr):
    """Load three channels, float32 [..., PIXELS] in [0, 1], of the units `at` [...].

    `mirrored` reverses the pixels of a unit. There is no mask because one would cost a move per value.
    """
    if PIXELS == 4:
        words = images.to(tl.pointer_type(tl.uint32)) + at * 3
        a, b, c = tl.load(words), tl.load(words + 1), tl.load(words + 2)
        if mirrored:
            red = in_turn(c << 8, b, a >> 8, a << 16)
            green = in_turn(c, b >> 8, b << 16, a << 8)
            blue = in_turn(c >> 8, c << 16, b << 8, a)
        else:
            red = in_turn(a << 16, a >> 8, b, c << 8)
            green = in_turn(a << 8, b << 16, b >> 8, c)
            blue = in_turn(a, b << 8, c << 16, c >> 8)
        return red, green, blue
    else:
        pixel = images + at[:, :, None] * 3
        r = tl.load(pixel).to(tl.float32) * UNIT
        g = tl.load(pixel + 1).to(tl.float32) * UNIT
        b = tl.load(pixel + 2).to(tl.float32) * UNIT
        return r, g, b


@triton.jit
def in_turn(a, b, c, d):
    return together(level(a), level(b), level(c), level(d))


@triton.jit
def level(word):
    """Return the third byte as float32 in [0, 1]; bits below 2^24 are exactly 2^-149 times their integer."""
    return (word & BYTE).to(tl.float32, bitcast=True) * BYTE_UNIT


@triton.jit
def tile_of_program(program, height, width, TILE: tl.constexpr):
    """Return the sample (int64), first row and first column; a sample's tiles are consecutive, row-major."""
    tiles_x = tl.cdiv(width, TILE)
    tiles = tl.cdiv(height, TILE) * tiles_x
    tile = program % tiles
    return (program // tiles).to(tl.int64), tile // tiles_x * TILE, tile % tiles_x * TILE


@triton.jit
def is_filtered(sample, blur, sobel, XY: tl.constexpr):
    """Return whether XY, or the draws `blur` and `sobel` (one may be None), blur or filter a sample."""
    if XY:
        return True
    elif blur is None:
        return tl.load(sobel + sample)
    elif sobel is None:
        return tl.load(blur + sample)
    else:
        return tl.load(blur + sample) | tl.load(sobel + sample)


@triton.jit
def mean_pass(
    images, apply, order, factors, sums, num_units, num_blocks,
    HUE: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Add up the luma that contrast will see, into sums [B, num_blocks].

    A program adds STEPS * BLOCK units of pixels to one sum.
    """
    sample = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    if not tl.load(apply + sample):
        return
    draw = load_draw(order + 4 * sample, factors + 4 * sample)
    before = 0
    while ((draw[0] >> (2 * before)) & 3) != CONTRAST:
        before += 1
    images += sample * num_units * (3 * PIXELS)
    total = tl.zeros([1, BLOCK, PIXELS], tl.float32)
    for step in range(STEPS):
        at = (block * STEPS + step) * BLOCK + tl.arange(0, BLOCK)[None, :]
        r, g, b = load_rgb(images, tl.minimum(at, num_units - 1), False, PIXELS)
        r, g, b = distort(r, g, b, draw, before, 0.0, HUE)
        total += tl.where((at < num_units)[:, :, None], luma(r, g, b), 0.0)
    tl.store(sums + sample * num_blocks + block, tl.sum(total))


@triton.jit
def colour_pass(
    images, out, planes, flip, apply, order, factors, sums, grey, blur, sobel,
    num_units, num_sums, pixel_share, scale_0, scale_1, scale_2, shift_0, shift_1, shift_2,
    HUE: tl.constexpr, LIGHTNESS: tl.constexpr, XY: tl.constexpr, PIXELS: tl.constexpr,
    UNITS: tl.constexpr, MAX_SUMS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Distort and write STEPS * BLOCK units of a sample per program, across the ends of its rows.

    So a program reads one piece of memory, and writes one, or one of each plane. UNITS are those of a row, a
    constant because mirroring divides by it. `images` is uint8 [B, H, W, 3], `out` [B, H, W, C]. `planes` is
    [B, C, H, W], or [B, 1, H, W] for SobelXY (XY), or None if the view has neither blur nor Sobel. A draw is
    None if the view lacks its op.
    """
    sample = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * (BLOCK * STEPS)
    mirrored = False
    if flip is not None:
        mirrored = tl.load(flip + sample)
    distorted, turned_grey, near = False, False, False
    if apply is not None:
        distorted = tl.load(apply + sample)
        draw = load_draw(order + 4 * sample, factors + 4 * sample)
        if sums is not None:
            block = tl.arange(0, MAX_SUMS)
            parts = tl.load(sums + sample * num_sums + block, mask=block < num_sums, other=0.0)
    if grey is not None:
        turned_grey = tl.load(grey + sample)
    if planes is not None:
        near = is_filtered(sample, blur, sobel, XY)
    mean = 0.0
    if sums is not None:
        mean = tl.sum(parts) * pixel_share
    num_channels: tl.constexpr = 1 if LIGHTNESS or XY else 3
    pixel = tl.arange(0, PIXELS)[None, None, :]
    plane = num_units * PIXELS
    images += sample * plane * 3
    out += sample * plane * num_channels
    if planes is not None:
        planes += sample * num_channels * plane
    for start in range(first, tl.minimum(first + BLOCK * STEPS, num_units), BLOCK):
        at = start + tl.arange(0, BLOCK)[None, :]
        inside = (at < num_units)[:, :, None]
        source = tl.minimum(at, num_units - 1)
        if mirrored:
            source += UNITS - 1 - 2 * (source % UNITS)
        r, g, b = load_rgb(images, source, mirrored, PIXELS)
        if apply is not None and distorted:
            r, g, b = distort(r, g, b, draw, 4, mean, HUE)
        if turned_grey:
            r = luma(r, g, b)
            g = r
            b = r
        if LIGHTNESS:
            r = lightness(r, g, b)
        elif XY:
            r = (r + g + b) * THIRD - LEVEL
        at = at[:, :, None] * PIXELS + pixel
        # Each pointer has its own name because a name has one type on both branches, and the pointers may
        # differ in type.
        if planes is not None and near:
            to_plane = planes + at
            tl.store(to_plane, r.to(planes.dtype.element_ty), mask=inside)
            if num_channels == 3:
                tl.store(to_plane + plane, g.to(planes.dtype.element_ty), mask=inside)
                tl.store(to_plane + 2 * plane, b.to(planes.dtype.element_ty), mask=inside)
        elif num_channels == 1:
            value = r * scale_0 + shift_0
            tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)
        else:
            r, g, b = r * scale_0 + shift_0, g * scale_1 + shift_1, b * scale_2 + shift_2
            quads = quads_of(in_fours(r), in_fours(g), in_fours(b), out.dtype.element_ty)
            values = side_by_side(quads, False)
            store_quads(out, values, 0, 1, start * PIXELS, 4, 1, plane, 1, BLOCK * PIXELS // 4)


@triton.jit
def in_fours(x):
    return tl.reshape(x, [x.shape[0], x.shape[1] * x.shape[2] // 4, 4])


@triton.jit
def together(a, b, c, d):
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [a.shape[0], a.shape[1], 4])
