"""Gaussian blur and Sobel as products with banded matrices: kernels/{blur,sobel,sobel_xy}.py on tensor cores.

Both are separable, and linear up to Sobel's root. Let G be the Gaussian's matrix along one axis (reflected at
the border), and y and x the two axes. Let S and D be Sobel's sums (1 2 1) and differences (-1 0 1) of
neighbours (with the border repeated). Then

    blur   G_y X G_xᵀ
    Sobel  gx = (S G)_y X (D G)_xᵀ / 8,  gy = (D G)_y X (S G)_xᵀ / 8,  sqrt(gx² + gy²) or, for SobelXY, both

where G is the identity for a sample that is not blurred. A tile of the result needs the pixels of the tile
and of a margin around it, read in chunks. It also needs TILE rows of these matrices.

    band_pass             computes these rows, for each sample and tile of an axis
    neighbourhood_pass    blurs, filters and normalises the planes tile by tile; strips.py does it for margins
                          of at most half a tile
    interleave_pass       puts the three planes of the result side by side
"""

import triton
import triton.language as tl

from fastpsl.kernels.fused_cuda.colour import is_filtered, tile_of_program
from fastpsl.kernels.fused_cuda.gradient import store_pairs
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
