"""Gaussian blur and Sobel in one pass of tensor-core products: kernels/{blur,sobel,normalise}.py on the GPU.

Both are separable and linear up to Sobel's root. With G the Gaussian's matrix of one side (reflected at the border), S
and D Sobel's sums (1 2 1) and differences (-1 0 1) of neighbours (the border repeated), h and v for the two sides,

    blur   G_v X G_hᵀ
    Sobel  gx = (S G)_v X (D G)_hᵀ / 8      gy = (D G)_v X (S G)_hᵀ / 8      sqrt(gx² + gy²)

where G is the identity for a sample that is not blurred. These matrices are banded: a tile of the result needs the pixels
of the tile and of a margin around it, and their weights follow from indices, the border included: a pixel that is mirrored
into the margin gets its mirror image's weight as well. So nothing outside the picture is read.
"""

import triton
import triton.language as tl

from fastpsl.kernels.fused.colour import tile_of_program

TAP_EXPONENT = tl.constexpr(-0.5)
SOBEL_MIDDLE = tl.constexpr(2.0)
SOBEL_SCALE = tl.constexpr(1 / 8)
# exp(-0.5 * 1000^2) is 0: the taps of a sample that is not blurred are 1 in the middle.
SHARP = tl.constexpr(1000)
# A tile of the result, and what each side of it reads at a time.
TILE = tl.constexpr(32)
CHUNK = tl.constexpr(64)


def num_chunks(half: int) -> int:
    """How many chunks cover a tile and a margin of `half` pixels for the blur and one for Sobel on either side."""
    return -(-(TILE.value + 2 * (half + 1)) // CHUNK.value)


@triton.jit
def tap(distance, per_sigma, per_sum, HALF: tl.constexpr):
    """The Gaussian's weight at a distance in pixels; 0 beyond HALF."""
    if HALF == 0:
        return tl.where(distance == 0, 1.0, 0.0)
    turned = distance.to(tl.float32) * per_sigma
    return tl.where(tl.abs(distance) <= HALF, tl.exp(turned * turned * TAP_EXPONENT) * per_sum, 0.0)


@triton.jit
def weights(source, centre, size, at_border, per_sigma, per_sum, HALF: tl.constexpr):
    """How much pixel `source` counts in the blurred pixel `centre`, on a side of `size` pixels."""
    weight = tap(source - centre, per_sigma, per_sum, HALF)
    if at_border:
        # Pixel s is seen again at -s and at 2 (size - 1) - s; the first and the last pixel are not mirrored.
        weight += tl.where(source > 0, tap(source + centre, per_sigma, per_sum, HALF), 0.0)
        mirror = 2 * (size - 1) - source
        weight += tl.where(source < size - 1, tap(mirror - centre, per_sigma, per_sum, HALF), 0.0)
    return weight


@triton.jit
def sums_and_differences(source, centre, size, at_border, per_sigma, per_sum, HALF: tl.constexpr):
    """S G and D G."""
    before = tl.maximum(centre - 1, 0)
    after = tl.minimum(centre + 1, size - 1)
    first = weights(source, before, size, at_border, per_sigma, per_sum, HALF)
    last = weights(source, after, size, at_border, per_sigma, per_sum, HALF)
    middle = weights(source, centre, size, at_border, per_sigma, per_sum, HALF)
    return first + middle * SOBEL_MIDDLE + last, last - first


@triton.jit
def load_chunk(plane, y, x, height, pitch):
    """[CHUNK, CHUNK] of a plane, 0 outside; y, x: of its pixels."""
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < pitch)
    return tl.load(plane + y * pitch + x, mask=inside, other=0.0)


@triton.jit
def store_channel(out, value, channel, scale_0, scale_1, scale_2, shift_0, shift_1, shift_2, inside):
    scale = tl.where(channel == 0, scale_0, tl.where(channel == 1, scale_1, scale_2))
    shift = tl.where(channel == 0, shift_0, tl.where(channel == 1, shift_1, shift_2))
    tl.store(out + channel, (value * scale + shift).to(out.dtype.element_ty), mask=inside)


@triton.jit
def neighbourhood_pass(
    planes, out, blur, sigma, sobel, height, width, pitch,
    scale_0, scale_1, scale_2, shift_0, shift_1, shift_2,
    HALF: tl.constexpr, NUM_TAPS: tl.constexpr, CHANNELS: tl.constexpr, NUM_CHUNKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile a program, as in colour_pass, of samples that are blurred or filtered.

    planes: [B, CHANNELS, H, pitch], half or float, in [0, 1], columns from W on are 0; out: [B, H, W, CHANNELS];
    NUM_TAPS: a power of two, at least 2 * HALF + 1; PRECISION: tl.dot's input_precision.
    """
    sample, y_0, x_0 = tile_of_program(height, width, TILE)
    blurred = blur is not None and tl.load(blur + sample)
    filtered = sobel is not None and tl.load(sobel + sample)
    if not (blurred or filtered):
        return
    per_sigma = 1.0
    if blur is not None:
        per_sigma = tl.where(blurred, 1.0 / tl.load(sigma + sample), SHARP)
    per_sum = 1.0 / tl.sum(tap(tl.arange(0, NUM_TAPS) - HALF, per_sigma, 1.0, HALF))

    y = y_0 + tl.arange(0, TILE)
    x = x_0 + tl.arange(0, TILE)
    at_y_border = (y_0 <= HALF) | (y_0 + TILE + HALF >= height)
    at_x_border = (x_0 <= HALF) | (x_0 + TILE + HALF >= width)
    # Its margin is a multiple of 16 pixels, so that rows are read in 16 bytes.
    margin: tl.constexpr = (NUM_CHUNKS * CHUNK - TILE) // 2
    chunk = tl.arange(0, CHUNK)
    planes += sample * CHANNELS * height * pitch
    out += (sample * height * width + y[:, None] * width + x[None, :]) * CHANNELS
    inside = (y[:, None] < height) & (x[None, :] < width)
    kind = planes.dtype.element_ty

    if filtered:
        for channel in range(CHANNELS):
            plane = planes + channel * height * pitch
            gx = tl.zeros([TILE, TILE], tl.float32)
            gy = tl.zeros([TILE, TILE], tl.float32)
            for x_chunk in range(NUM_CHUNKS):
                source_x = x_0 - margin + x_chunk * CHUNK + chunk
                summed = tl.zeros([TILE, CHUNK], tl.float32)
                differed = tl.zeros([TILE, CHUNK], tl.float32)
                for y_chunk in range(NUM_CHUNKS):
                    source_y = y_0 - margin + y_chunk * CHUNK + chunk
                    s, d = sums_and_differences(
                        source_y[None, :], y[:, None], height, at_y_border, per_sigma, per_sum, HALF
                    )
                    pixels = load_chunk(plane, source_y[:, None], source_x[None, :], height, pitch)
                    summed = tl.dot(s.to(kind), pixels, summed, input_precision=PRECISION)
                    differed = tl.dot(d.to(kind), pixels, differed, input_precision=PRECISION)
                s, d = sums_and_differences(
                    source_x[:, None], x[None, :], width, at_x_border, per_sigma, per_sum, HALF
                )
                gx = tl.dot(summed.to(kind), d.to(kind), gx, input_precision=PRECISION)
                gy = tl.dot(differed.to(kind), s.to(kind), gy, input_precision=PRECISION)
            size = tl.sqrt(gx * gx + gy * gy) * SOBEL_SCALE
            store_channel(out, size, channel, scale_0, scale_1, scale_2, shift_0, shift_1, shift_2, inside)
    else:
        for channel in range(CHANNELS):
            plane = planes + channel * height * pitch
            value = tl.zeros([TILE, TILE], tl.float32)
            for x_chunk in range(NUM_CHUNKS):
                source_x = x_0 - margin + x_chunk * CHUNK + chunk
                rows = tl.zeros([TILE, CHUNK], tl.float32)
                for y_chunk in range(NUM_CHUNKS):
                    source_y = y_0 - margin + y_chunk * CHUNK + chunk
                    w = weights(source_y[None, :], y[:, None], height, at_y_border, per_sigma, per_sum, HALF)
                    pixels = load_chunk(plane, source_y[:, None], source_x[None, :], height, pitch)
                    rows = tl.dot(w.to(kind), pixels, rows, input_precision=PRECISION)
                w = weights(source_x[:, None], x[None, :], width, at_x_border, per_sigma, per_sum, HALF)
                value = tl.dot(rows.to(kind), w.to(kind), value, input_precision=PRECISION)
            store_channel(out, value, channel, scale_0, scale_1, scale_2, shift_0, shift_1, shift_2, inside)
