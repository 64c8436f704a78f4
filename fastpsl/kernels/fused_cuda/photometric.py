"""Views of flip, colour distortion, grey, lightness, blur and Sobel or SobelXY in at most five launches.

The cost for 256 samples of 224 px (12.8 Mpx) with the draws of SimCLR's T3 is counted, not measured: 80 % of
the samples are distorted, and 60 % are blurred or filtered and go through a planar buffer of halves. Times
are by bytes at 4.25 TB/s, and by products at 400 Tflop/s. Those of instructions are by warps, one a cycle and
scheduler on 132 SMs of 1.755 GHz. They were counted for sm_90 (Triton 3.9; bench/sass.py of 53a9b800).

    launch      reads and writes                              bytes     ms   instructions   ms  products   ms
    mean        uint8, of the distorted                       31 MB  0.007         14.4 M  0.016
    colour      uint8; the result or planes                  116 MB  0.027         29.8 M  0.032
    band        weights of the blurred and filtered            6 MB  0.002          5.0 M  0.005
    strip       planes, weights (0.23 GB from L2); planes     92 MB  0.022         13.2 M  0.014  9.0 G  0.023
    interleave  planes; the result                            92 MB  0.022          4.9 M  0.005

The floor, uint8 once and halves once, is 0.027 ms. A third of colour's instructions are hue's, a sixth those
of the three blends. Two pixels per instruction, as halves, would save half of the blends'. But in a
simulation with T3's draws (without hue) the error was two to three times the tests' limit. A list of the
samples that a launch handles would spare the programs of all others, which return after some eleven
instructions: 0.1 M of the 67.3 M.

The last launch would not be needed if strip stored its channel between the other two. But then each sector of
32 bytes is written in parts by three programs, which takes far longer (bench/sectors.py of 53a9b800).

With SobelXY all samples go through the buffer, which then has one plane, and the result has two channels.
Flip and SobelXY alone take one launch (neighbourhood.py).

A tile needs the columns from half a tile before it to half a tile behind it. The left half of these is the
right half of the previous tile's, and so is its product with the band along the other axis. It stays in
registers, so a strip reads its columns once.
"""

from collections.abc import Mapping, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpsl.kernels.colour import ColourDistortion, Grey
from fastpsl.kernels.filters import GaussianBlur, Sobel, SobelXY
from fastpsl.kernels.fused_cuda.colour import colour_pass, is_filtered, mean_pass
from fastpsl.kernels.fused_cuda.neighbourhood import (
    band_pass,
    gradient_pass,
    gradient_size,
    interleave_pass,
    neighbourhood_pass,
    normalised,
    store_gradients,
)
from fastpsl.kernels.geometry import Flip
from fastpsl.kernels.lab import Lightness
from fastpsl.kernels.normalise import check_fused_arguments, scale_and_shift

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


ORDERS = (
    (Flip, ColourDistortion, Grey, Lightness, GaussianBlur, Sobel),
    (Flip, ColourDistortion, Grey, GaussianBlur, SobelXY),
)
# A thread has 8 pixels at a time. What a program learns about its sample serves two blocks, or four of
# the mean pass. With more of them too few programs would be left to end together.
BLOCK = 1024
COLOUR_STEPS = 2
MEAN_STEPS = 4
# A program of one warp has a tile of 32 px, 8 rows at a time. One that interleaves has 1,024 pixels. No
# measurement of others is kept.
GRADIENT_TILE = 32
GRADIENT_ROWS = 8
INTERLEAVE_QUADS = 256
# Pixels along an axis that a product takes at a time.
CHUNK = 32
NUM_WARPS = 4
# float32 products take three of the tensor cores' own, which together are as exact as float32. Halves ignore
# this.
PRECISION = "tf32x3"


def fits(ops: Sequence[object]) -> bool:
    """Return whether `ops` are some or none of the operations of one of ORDERS, in its order."""
    kinds = [type(op) for op in ops]
    return any(kinds == [kind for kind in order if kind in kinds] for order in ORDERS)


def run(
    images: Tensor,
    ops: Sequence[object],
    draws: Sequence[Mapping[str, Tensor]],
    mean: Sequence[float],
    std: Sequence[float],
    out: Tensor,
) -> None:
    """Compute the result of `ops` into `out`, without waiting for the device; see kernels/fused.py.

    The arithmetic is float32. If the result is of a half type, the input of a blur or Sobel is rounded to
    half.
    """
    assert fits(ops), ops
    check_fused_arguments(images, ops, mean, std, out)
    batch, channels, height, width = out.shape
    if not out.numel():
        return
    images = images.contiguous(memory_format=torch.channels_last)
    op_of = {type(op): op for op in ops}
    draw_of = {
        (type(op), name): values.contiguous()
        for op, draw in zip(ops, draws, strict=True)
        for name, values in draw.items()
    }
    colour = op_of.get(ColourDistortion)
    xy = SobelXY in op_of
    hue = isinstance(colour, ColourDistortion) and colour.hue > 0
    apply = draw_of.get((ColourDistortion, "apply"))
    order = draw_of.get((ColourDistortion, "order"))
    factors = draw_of.get((ColourDistortion, "factors"))
    blur = draw_of.get((GaussianBlur, "apply"))
    sobel = draw_of.get((Sobel, "apply"))
    scale, shift = (x + [0.0] * (3 - channels) for x in scale_and_shift(mean, std, 1.0))
    factor_and_shift = (*scale, *shift)

    # Rows of whole words are read by words, four pixels at a time.
    pixels = 4 if width % 4 == 0 and images.data_ptr() % 4 == 0 else 1
    with torch.cuda.device_of(images):
        if xy and set(op_of) <= {Flip, SobelXY}:
            if images.data_ptr() % 4:  # because the kernel reads words
                images = images.clone()
            num_tiles = triton.cdiv(height, GRADIENT_TILE) * triton.cdiv(width, GRADIENT_TILE) * batch
            gradient_pass[(num_tiles,)](
                images, out, draw_of.get((Flip, "flip")), height, width, *scale[:2], *shift[:2],
                TILE=GRADIENT_TILE, ROWS=GRADIENT_ROWS, num_warps=1,
            )  # fmt: skip
            return
        num_sums, sums = triton.cdiv(height * width, BLOCK * MEAN_STEPS), None
        units = width // pixels
        if isinstance(colour, ColourDistortion) and colour.contrast > 0:
            sums = torch.empty((batch, num_sums), device=images.device)
            mean_pass[(batch, num_sums)](
                images, apply, order, factors, sums, height * units, num_sums,
                HUE=hue, PIXELS=pixels, BLOCK=BLOCK // pixels, STEPS=MEAN_STEPS, num_warps=NUM_WARPS,
            )  # fmt: skip
        planes = None
        num_planes = 1 if xy else channels
        if blur is not None or sobel is not None or xy:
            kind = torch.float32 if out.dtype == torch.float32 else torch.float16
            planes = torch.empty((batch, num_planes, height, width), dtype=kind, device=images.device)
        colour_pass[(batch, triton.cdiv(height * width, BLOCK * COLOUR_STEPS))](
            images, out, planes, draw_of.get((Flip, "flip")), apply, order, factors, sums,
            draw_of.get((Grey, "apply")), blur, sobel,
            height * units, num_sums, 1 / (height * width), *factor_and_shift,
            HUE=hue, LIGHTNESS=channels == 1, XY=xy, PIXELS=pixels, UNITS=units,
            MAX_SUMS=triton.next_power_of_2(num_sums), BLOCK=BLOCK // pixels, STEPS=COLOUR_STEPS,
            num_warps=NUM_WARPS,
        )  # fmt: skip
        if planes is None:
            return
        half = next((op.kernel_px // 2 for op in ops if isinstance(op, GaussianBlur)), 0)
        tile, num_chunks = tiling(half, planes.dtype == torch.float32)
        tiles_y, tiles_x = triton.cdiv(height, tile), triton.cdiv(width, tile)
        square = height == width
        num_bands = (tiles_y if square else tiles_y + tiles_x) * batch
        bands = planes.new_empty((num_bands, 2 if sobel is not None or xy else 1, tile, num_chunks * CHUNK))
        band_pass[(num_bands,)](
            bands, blur, draw_of.get((GaussianBlur, "sigma")), sobel, height, width, XY=xy, SQUARE=square,
            HALF=half, NUM_TAPS=triton.next_power_of_2(2 * half + 1), NUM_CHUNKS=num_chunks, TILE=tile,
            CHUNK=CHUNK, num_warps=NUM_WARPS,
        )  # fmt: skip
        done = out if num_planes == 1 else torch.empty(planes.shape, dtype=out.dtype, device=out.device)
        if num_chunks * CHUNK == 2 * tile:
            # Each warp has 16 rows, because more warps would repeat the same rows.
            strip_pass[(batch, tiles_y, num_planes)](
                planes, done, bands, blur, sobel, height, width, *factor_and_shift,
                XY=xy, SQUARE=square, CHANNELS=num_planes, REACH=half + 1, TILE=tile, PRECISION=PRECISION,
                num_warps=tile // 16, num_stages=2,
            )  # fmt: skip
        else:
            neighbourhood_pass[(tiles_y * tiles_x * batch,)](
                planes, done, bands, blur, sobel, height, width, *factor_and_shift,
                XY=xy, SQUARE=square, CHANNELS=num_planes, NUM_CHUNKS=num_chunks, TILE=tile, CHUNK=CHUNK,
                PRECISION=PRECISION, num_warps=NUM_WARPS, num_stages=2,
            )  # fmt: skip
        if num_planes == 3:
            num_blocks = triton.cdiv(height * width, 4 * INTERLEAVE_QUADS)
            interleave_pass[(batch, num_blocks)](
                done, out, blur, sobel, height * width, QUADS=INTERLEAVE_QUADS, num_warps=NUM_WARPS
            )


def tiling(half: int, full: bool) -> tuple[int, int]:
    """Return TILE and NUM_CHUNKS, the largest that spill no register.

    The chunks cover a tile and, on either side, a margin of `half` pixels for the blur and one for Sobel.
    """
    tile = 16 if full else 32
    return tile, -(-(tile + 2 * (half + 1)) // CHUNK)
