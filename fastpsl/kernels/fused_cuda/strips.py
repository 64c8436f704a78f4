"""Blur and Sobel as in neighbourhood.py, by strips of tiles, for margins of at most half a tile.

A tile needs the columns from half a tile before it to half a tile behind it. The left half of these is the
right half of the previous tile's, and so is its product with the band along the other axis. It stays in
registers, so a strip reads its columns once.
"""

import triton
import triton.language as tl

from fastpsl.kernels.fused_cuda.colour import is_filtered
from fastpsl.kernels.fused_cuda.neighbourhood import gradient_size, normalised, store_gradients

# mypy: disable-error-code="no-untyped-def"


@triton.jit
def load_beyond(source, x_0, needed, width):
    """Load [2 * TILE, TILE] pixels: the columns from half a tile behind x_0 on.

    Pixels that are not needed or lie outside the plane read as 0.
    """
    TILE: tl.constexpr = source.shape[1]
    x = x_0 + (tl.arange(0, TILE)[None, :] + TILE // 2)
    return tl.load(source + x_0, mask=needed & (x >= 0) & (x < width), other=0.0)


@triton.jit
def strip_pass(
    planes, done, bands, blur, sobel, height, width, scale_0, scale_1, scale_2, shift_0, shift_1, shift_2,
    XY: tl.constexpr, SQUARE: tl.constexpr, CHANNELS: tl.constexpr, REACH: tl.constexpr,
    TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute TILE rows of a channel per program, for samples that are blurred or filtered.

    The grid is samples, strips, channels. `planes`, `done` and PRECISION are as in neighbourhood_pass, and so
    is `bands`, with 2 * TILE pixels. REACH is the largest distance with nonzero weights, at most TILE / 2.
    Rows beyond it are not read.
    """
    sample = tl.program_id(0).to(tl.int64)
    if not is_filtered(sample, blur, sobel, XY):
        return
    strip, channel = tl.program_id(1), tl.program_id(2)
    tiles_y, tiles_x = tl.cdiv(height, TILE), tl.cdiv(width, TILE)
    tiles = tiles_y if SQUARE else tiles_y + tiles_x
    first_x = 0 if SQUARE else tiles_y
    num_kinds: tl.constexpr = 1 if sobel is None and not XY else 2
    band: tl.constexpr = TILE * 2 * TILE
    tile, both = tl.arange(0, TILE), tl.arange(0, 2 * TILE)
    # The left matrix is [TILE, 2 * TILE]. On the right there are two of [TILE, TILE], TILE values apart.
    band_y = bands + (sample * tiles + strip) * num_kinds * band
    band_y += tile[:, None] * (2 * TILE) + both[None, :]
    bands += (sample * tiles + first_x) * num_kinds * band
    right = tile[None, :] * (2 * TILE) + tile[:, None]
    y_0 = strip * TILE
    source_y = y_0 - TILE // 2 + both[:, None]
    needed = (source_y >= tl.maximum(y_0 - REACH, 0)) & (source_y < tl.minimum(y_0 + TILE + REACH, height))
    plane = (sample * CHANNELS + channel) * height * width
    source = planes + plane
    source += source_y * width + tile[None, :] + TILE // 2
    kind = planes.dtype.element_ty
    y = y_0 + tile[:, None]
    values: tl.constexpr = 2 if XY else 1
    done += plane * values

    # The first step, before the first tile, only has columns to its right and stores nothing.
    if XY or (sobel is not None and tl.load(sobel + sample)):
        sums_y, differences_y = tl.load(band_y), tl.load(band_y + band)
        sums, differences = tl.zeros([TILE, TILE], kind), tl.zeros([TILE, TILE], kind)
        for step in range(-1, tiles_x):
            x_0 = step * TILE
            pixels = load_beyond(source, x_0, needed, width)
            next_sums = tl.dot(sums_y, pixels, input_precision=PRECISION).to(kind)
            next_differences = tl.dot(differences_y, pixels, input_precision=PRECISION).to(kind)
            sums_x = bands + tl.maximum(step, 0) * (num_kinds * band) + right
            differences_x = sums_x + band
            gx = tl.dot(sums, tl.load(differences_x), input_precision=PRECISION)
            gx = tl.dot(next_sums, tl.load(differences_x + TILE), gx, input_precision=PRECISION)
            gy = tl.dot(differences, tl.load(sums_x), input_precision=PRECISION)
            gy = tl.dot(next_differences, tl.load(sums_x + TILE), gy, input_precision=PRECISION)
            sums, differences = next_sums, next_differences
            to = done + ((y * width + x_0) * values + tile[None, :] * values)
            inside = (y < height) & (x_0 + tile[None, :] < width) & (step >= 0)
            if XY:
                store_gradients(to, gx, gy, scale_0, scale_1, shift_0, shift_1, inside)
            else:
                value = gradient_size(gx, gy)
                value = normalised(value, channel, scale_0, scale_1, scale_2, shift_0, shift_1, shift_2)
                tl.store(to, value.to(done.dtype.element_ty), mask=inside)
    else:
        weights_y = tl.load(band_y)
        rows = tl.zeros([TILE, TILE], kind)
        for step in range(-1, tiles_x):
            x_0 = step * TILE
            pixels = load_beyond(source, x_0, needed, width)
            next_rows = tl.dot(weights_y, pixels, input_precision=PRECISION).to(kind)
            weights_x = bands + tl.maximum(step, 0) * (num_kinds * band) + right
            value = tl.dot(rows, tl.load(weights_x), input_precision=PRECISION)
            value = tl.dot(next_rows, tl.load(weights_x + TILE), value, input_precision=PRECISION)
            rows = next_rows
            to = done + ((y * width + x_0) * values + tile[None, :] * values)
            inside = (y < height) & (x_0 + tile[None, :] < width) & (step >= 0)
            value = normalised(value, channel, scale_0, scale_1, scale_2, shift_0, shift_1, shift_2)
            tl.store(to, value.to(done.dtype.element_ty), mask=inside)
