"""The grey image's gradients directly from its bytes: kernels/{flip,sobel_xy,normalise}.py in one launch.

This is for views without colour and blur. The cost for 256 samples of 224 px (12.8 Mpx), counted as in
photometric.py and not measured: uint8 once and two halves per pixel are 90 MB, 0.021 ms; 64 instructions per
pixel are 0.028 ms. A thread goes down its column and keeps the results of the two rows above. So a pixel
loads three bytes of three neighbours, and a quarter more at the ends of the walk. Otherwise, it would load
the 24 bytes of its eight neighbours.
"""

import triton
import triton.language as tl

from fastpsl.kernels.fused_cuda.colour import tile_of_program

# mypy: disable-error-code="no-untyped-def"

# The scale of sums of bytes over three colours with weights that add up to 8.
SUMS_SCALE = tl.constexpr(1 / (3 * 255 * 8))


@triton.jit
def sum_of_colours(pixel):
    """Return R + G + B, int32, from pointers to the first bytes of pixels."""
    return tl.load(pixel).to(tl.int32) + tl.load(pixel + 1).to(tl.int32) + tl.load(pixel + 2).to(tl.int32)


@triton.jit
def along_row(row, left, x, right):
    """Return the differences [-1 0 1] and the sums [1 2 1] of a row's neighbouring pixels."""
    before, after = sum_of_colours(row + left * 3), sum_of_colours(row + right * 3)
    return after - before, before + 2 * sum_of_colours(row + x * 3) + after


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

    `images` is uint8 [B, H, W, 3], `out` [B, H, W, 2], `flip` None if the view has none.
    """
    sample, y_0, x_0 = tile_of_program(tl.program_id(0), height, width, TILE)
    x = x_0 + tl.arange(0, TILE)[None, :]
    y = y_0 + ROWS * tl.arange(0, TILE // ROWS)[:, None]
    last_x, last_y = width - 1, height - 1
    here = tl.minimum(x, last_x)
    left, right = tl.maximum(here - 1, 0), tl.minimum(x + 1, last_x)
    # Pixels are read unmirrored and written mirrored, as in colour_pass. A mirror changes the sign of gx.
    to_x = x
    if flip is not None and tl.load(flip + sample):
        to_x = last_x - x
        scale_0 = -scale_0
    scale_0, scale_1 = scale_0 * SUMS_SCALE, scale_1 * SUMS_SCALE
    images += sample * height * width * 3
    out += sample * height * width * 2
    width_3 = width * 3
    d_0, s_0 = along_row(images + tl.minimum(tl.maximum(y - 1, 0), last_y) * width_3, left, here, right)
    d_1, s_1 = along_row(images + tl.minimum(y, last_y) * width_3, left, here, right)
    for _ in tl.static_range(ROWS):
        d_2, s_2 = along_row(images + tl.minimum(y + 1, last_y) * width_3, left, here, right)
        gx = (d_0 + 2 * d_1 + d_2).to(tl.float32) * scale_0 + shift_0
        gy = (s_2 - s_0).to(tl.float32) * scale_1 + shift_1
        store_pairs(out + (y * width + to_x) * 2, gx, gy, (y < height) & (x < width))
        d_0, s_0 = d_1, s_1
        d_1, s_1 = d_2, s_2
        y += 1
