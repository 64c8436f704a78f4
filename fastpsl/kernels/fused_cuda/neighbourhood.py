"""Gaussian blur and Sobel as products with banded matrices: kernels/filters.py on tensor cores.

Both are separable, and linear up to Sobel's root. Let G be the Gaussian's matrix along one axis (reflected at
the border), and y and x the two axes. Let S and D be Sobel's sums (1 2 1) and differences (-1 0 1) of
neighbours (with the border repeated). Then

    blur   G_y X G_xᵀ
    Sobel  gx = (S G)_y X (D G)_xᵀ / 8,  gy = (D G)_y X (S G)_xᵀ / 8,  sqrt(gx² + gy²) or, for SobelXY, both

where G is the identity for a sample that is not blurred. A tile of the result needs the pixels of the tile
and of a margin around it, read in chunks. It also needs TILE rows of these matrices.

    band_pass             computes these rows, for each sample and tile of an axis
    neighbourhood_pass    blurs, filters and normalises the planes tile by tile; strip_pass in photometric.py
                          does it for margins of at most half a tile
    interleave_pass       puts the three planes of the result side by side

`gradient_pass` serves views of SobelXY without colour and blur. The cost for 256 samples of 224 px (12.8
Mpx), counted as in photometric.py and not measured: uint8 once and two halves per pixel are 90 MB, 0.021 ms;
40 instructions per pixel are 0.017 ms. A thread makes four pixels side by side, goes down its columns and
keeps the two rows above. So it loads six words per row for four pixels and their neighbours, and a quarter
more at the ends of the walk. Byte by byte, these would be 36 loads.
"""

import triton
import triton.language as tl

from fastpsl.kernels.fused_cuda.colour import is_filtered, tile_of_program
from fastpsl.kernels.fused_cuda.isotropic import INTEGERS_BITS, in_turn, joined
from fastpsl.kernels.fused_cuda.quads import quads_of, side_by_side, store_quads

# mypy: disable-error-code="no-untyped-def"

TAP_EXPONENT = tl.constexpr(-0.5)
LOG2_E = tl.constexpr(1.4426950408889634)
SOBEL_MIDDLE = tl.constexpr(2.0)
SOBEL_SCALE = tl.constexpr(1 / 8)
# exp(-0.5 * 1000^2) is 0, so the taps of a sample that is not blurred are 1 in the middle and 0 elsewhere.
SHARP = tl.constexpr(1000)


@triton.jit
def tap(distance, slope, offset, HALF: tl.constexpr):
    """Return the Gaussian 2^(slope * distance² + offset), and 0 beyond HALF."""
    squared = (distance * distance).to(tl.float32)
    return tl.where(tl.abs(distance) <= HALF, tl.exp2(squared * slope + offset), 0.0)


@triton.jit
def weights(source, centre, size, slope, offset, middle, HALF: tl.constexpr):
    """Return the weight of pixel `source` in the blurred pixel `centre`; `middle` is the tap at 0."""
    distance = source - centre
    weight = tl.where(distance == 0, middle, tap(distance, slope, offset, HALF))
    # Pixel s is reflected to -s and to 2 (size - 1) - s; the first and the last pixel are not. So no pixels
    # beyond the border are needed.
    weight += tl.where(source > 0, tap(source + centre, slope, offset, HALF), 0.0)
    mirrored = 2 * (size - 1) - source
    return weight + tl.where(source < size - 1, tap(mirrored - centre, slope, offset, HALF), 0.0)


@triton.jit
def band_pass(
    bands, blur, sigma, sobel, height, width,
    XY: tl.constexpr, SQUARE: tl.constexpr, HALF: tl.constexpr, NUM_TAPS: tl.constexpr,
    NUM_CHUNKS: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Compute weights [B, tiles in y + tiles in x, kinds, TILE, NUM_CHUNKS * CHUNK], all kinds per program.

    SQUARE means that the height is the width, and leaves out the tiles in x, which equal those in y. The
    kinds are G, or, with a Sobel, S G (G for samples without a filter) and D G. A row belongs to a pixel of
    the tile, a column to a pixel of the image, from a margin before the tile on. NUM_TAPS is a power of two,
    at least 2 * HALF + 1.
    """
    tiles_y = tl.cdiv(height, TILE)
    tiles = tiles_y if SQUARE else tiles_y + tl.cdiv(width, TILE)
    program = tl.program_id(0)
    sample = program // tiles
    if not is_filtered(sample, blur, sobel, XY):
        return
    slope = 0.0
    if blur is not None:
        per_sigma = tl.where(tl.load(blur + sample), 1.0 / tl.load(sigma + sample), SHARP)
        slope = per_sigma * per_sigma * TAP_EXPONENT * LOG2_E
    distances = tl.arange(0, NUM_TAPS) - HALF
    offset = -tl.log2(tl.sum(tap(distances, slope, 0.0, HALF)))
    # The middle tap gets what rounding takes from the others, so that the sum is 1 and flat parts keep their
    # value.
    kind = bands.dtype.element_ty
    beside = tl.where(distances == 0, 0.0, tap(distances, slope, offset, HALF))
    middle = 1.0 - tl.sum(beside.to(kind).to(tl.float32))

    tile = program % tiles
    size = tl.where(tile < tiles_y, height, width)
    first = tl.where(tile < tiles_y, tile, tile - tiles_y) * TILE
    pixel = tl.arange(0, TILE)[:, None]
    margin: tl.constexpr = (NUM_CHUNKS * CHUNK - TILE) // 2
    num_kinds: tl.constexpr = 1 if sobel is None and not XY else 2
    bands += program.to(tl.int64) * num_kinds * TILE * NUM_CHUNKS * CHUNK
    for chunk in range(NUM_CHUNKS):
        column = chunk * CHUNK + tl.arange(0, CHUNK)[None, :]
        source = first - margin + column
        to = bands + pixel * (NUM_CHUNKS * CHUNK) + column
        centre = first + pixel
        weight = weights(source, centre, size, slope, offset, middle, HALF)
        if XY or (sobel is not None and tl.load(sobel + sample)):
            before = weights(source, tl.maximum(centre - 1, 0), size, slope, offset, middle, HALF)
            after = weights(source, tl.minimum(centre + 1, size - 1), size, slope, offset, middle, HALF)
            tl.store(to + TILE * NUM_CHUNKS * CHUNK, (after - before).to(kind))
            weight = before + weight * SOBEL_MIDDLE + after
        tl.store(to, weight.to(kind))


@triton.jit
def banded_product(
    plane, band_y, band_x, source_y, source_x, height, width,
    NUM_CHUNKS: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return one band times the plane times the other, float32 [TILE, TILE], within the plane's bounds."""
    kind = plane.dtype.element_ty
    TILE: tl.constexpr = band_y.shape[0]
    product = tl.zeros([TILE, TILE], tl.float32)
    for i in range(0, NUM_CHUNKS * CHUNK, CHUNK):
        x = source_x + i
        rows = tl.zeros([TILE, CHUNK], tl.float32)
        for j in range(0, NUM_CHUNKS * CHUNK, CHUNK):
            y = source_y + j
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            pixels = tl.load(plane + (y * width + x), mask=inside, other=0.0)
            rows = tl.dot(tl.load(band_y + j), pixels, rows, input_precision=PRECISION)
        product = tl.dot(rows.to(kind), tl.load(band_x + i), product, input_precision=PRECISION)
    return product


@triton.jit
def banded_gradients(
    plane, band_y, band_x, band, source_y, source_x, height, width,
    NUM_CHUNKS: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return 8 gx and 8 gy: sums along one axis and differences along the other.

    The rows of the sums come first, those of the differences `band` values later.
    """
    gx = banded_product(
        plane, band_y, band_x + band, source_y, source_x, height, width, NUM_CHUNKS, CHUNK, PRECISION
    )
    gy = banded_product(
        plane, band_y + band, band_x, source_y, source_x, height, width, NUM_CHUNKS, CHUNK, PRECISION
    )
    return gx, gy


@triton.jit
def normalised(value, channel, scale_0, scale_1, scale_2, shift_0, shift_1, shift_2):
    scale = tl.where(channel == 0, scale_0, tl.where(channel == 1, scale_1, scale_2))
    return value * scale + tl.where(channel == 0, shift_0, tl.where(channel == 1, shift_1, shift_2))


@triton.jit
def gradient_size(gx, gy):
    """Return the gradient's magnitude from 8 gx and 8 gy."""
    return tl.sqrt(gx * gx + gy * gy) * SOBEL_SCALE


@triton.jit
def store_gradients(to, gx, gy, scale_0, scale_1, shift_0, shift_1, inside):
    """Normalise and store gx and gy, from 8 gx and 8 gy."""
    store_pairs(to, gx * SOBEL_SCALE * scale_0 + shift_0, gy * SOBEL_SCALE * scale_1 + shift_1, inside)


@triton.jit
def neighbourhood_pass(
    planes, done, bands, blur, sobel, height, width, scale_0, scale_1, scale_2, shift_0, shift_1, shift_2,
    XY: tl.constexpr, SQUARE: tl.constexpr, CHANNELS: tl.constexpr, NUM_CHUNKS: tl.constexpr,
    TILE: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute a tile of TILE x TILE pixels per program, of the samples that are blurred or filtered.

    `planes` is [B, CHANNELS, H, W] in [0, 1], half or float. `done` gets the result in this shape. SobelXY
    (XY) has one plane, and two channels side by side in `done`, [B, H, W, 2]. PRECISION is tl.dot's
    input_precision.
    """
    sample, y_0, x_0 = tile_of_program(tl.program_id(0), height, width, TILE)
    if not is_filtered(sample, blur, sobel, XY):
        return
    tiles_y = tl.cdiv(height, TILE)
    tiles = tiles_y if SQUARE else tiles_y + tl.cdiv(width, TILE)
    first_x = 0 if SQUARE else tiles_y
    band: tl.constexpr = TILE * NUM_CHUNKS * CHUNK
    num_kinds: tl.constexpr = 1 if sobel is None and not XY else 2
    tile = tl.arange(0, TILE)
    chunk = tl.arange(0, CHUNK)
    row = tile * (NUM_CHUNKS * CHUNK)
    # The left matrix is [TILE, CHUNK], the right one [CHUNK, TILE]. Here and below, offsets that differ
    # between threads have 32 bits.
    band_y = bands + (sample * tiles + y_0 // TILE) * num_kinds * band
    band_y += row[:, None] + chunk[None, :]
    band_x = bands + (sample * tiles + first_x + x_0 // TILE) * num_kinds * band
    band_x += row[None, :] + chunk[:, None]
    # A multiple of 16 pixels, so that rows are read in 16 bytes if the width is one too.
    margin: tl.constexpr = (NUM_CHUNKS * CHUNK - TILE) // 2
    source_y = y_0 - margin + chunk[:, None]
    source_x = x_0 - margin + chunk[None, :]
    planes += sample * CHANNELS * height * width
    y = y_0 + tile[:, None]
    x = x_0 + tile[None, :]
    values: tl.constexpr = 2 if XY else 1
    done += sample * CHANNELS * height * width * values
    inside = (y < height) & (x < width)
    to = (y * width + x) * values

    # Each case has its own loop, which keeps the bands, equal for all channels, out of it and prefetches the
    # next channel.
    if XY:
        gx, gy = banded_gradients(
            planes, band_y, band_x, band, source_y, source_x, height, width, NUM_CHUNKS, CHUNK, PRECISION
        )
        store_gradients(done + to, gx, gy, scale_0, scale_1, shift_0, shift_1, inside)
    elif sobel is not None and tl.load(sobel + sample):
        for channel in range(CHANNELS):
            plane = planes + channel * height * width
            gx, gy = banded_gradients(
                plane, band_y, band_x, band, source_y, source_x, height, width, NUM_CHUNKS, CHUNK, PRECISION
            )
            value = gradient_size(gx, gy)
            value = normalised(value, channel, scale_0, scale_1, scale_2, shift_0, shift_1, shift_2)
            tl.store(done + channel * height * width + to, value.to(done.dtype.element_ty), mask=inside)
    else:
        for channel in range(CHANNELS):
            plane = planes + channel * height * width
            value = banded_product(
                plane, band_y, band_x, source_y, source_x, height, width, NUM_CHUNKS, CHUNK, PRECISION
            )
            value = normalised(value, channel, scale_0, scale_1, scale_2, shift_0, shift_1, shift_2)
            tl.store(done + channel * height * width + to, value.to(done.dtype.element_ty), mask=inside)


@triton.jit
def interleave_pass(done, out, blur, sobel, num_pixels, QUADS: tl.constexpr):
    """Copy [B, 3, H * W] to [B, H * W, 3], for samples that are blurred or filtered.

    The grid is samples, blocks of 4 * QUADS pixels. The passes before it make one channel at a time, which
    they would store with gaps. A sector that is written in parts costs the L2 cache many times as much.
    """
    sample = tl.program_id(0).to(tl.int64)
    if not is_filtered(sample, blur, sobel, False):
        return
    first = tl.program_id(1) * (4 * QUADS)
    pixel = first + tl.reshape(tl.arange(0, 4 * QUADS), [1, QUADS, 4])
    inside = pixel < num_pixels
    done += sample * 3 * num_pixels + pixel
    red, green = tl.load(done, mask=inside), tl.load(done + num_pixels, mask=inside)
    blue = tl.load(done + 2 * num_pixels, mask=inside)
    values = side_by_side(quads_of(red, green, blue, out.dtype.element_ty), False)
    store_quads(out + sample * 3 * num_pixels, values, 0, 1, first, 4, 1, num_pixels, 1, QUADS)


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
