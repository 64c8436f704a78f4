"""Jigsaw tiles and turns, also of flipped and shifted images, normalised, in one kernel.

uint8 pixels are read once and written to their places. The program that has read a square writes all turns of
it, so the reads cost a seventh of the writes. Counted as in shifted.py, for 128 samples of 32 px, 512 images
(SSL++ on CIFAR-10):

    chain                                one by one              fused
    Shift, Flip, AllTurns         26 launches, 43.4 MB     1 launch, 3.5 MB
    Flip, AllTurns                19 launches, 41.3 MB     1 launch, 3.5 MB
"""

from collections.abc import Mapping, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpsl.kernels.fused_cuda.placement import drawn_moves, placement, without_moves
from fastpsl.kernels.fused_cuda.quads import load_quads, side_by_side, store_quads
from fastpsl.kernels.geometry import AllTurns, Flip, Rotate45, Rotate90
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.normalise import check_fused_arguments, scale_and_shift

# mypy: disable-error-code="no-untyped-def"

# A program handles a square of 32 px of a turned image, or 16 rows of 64 px of a tile: 1,024 pixels, 8 per
# thread.
_SIDE, _ROWS, _QUADS, _NUM_WARPS = 32, 16, 16, 4


def fits(ops: Sequence[object]) -> bool:
    """Return whether `ops` are jigsaw tiles after an optional Flip, or turns after optional moves.

    The moves are Shift and Flip, in this order.
    """
    kinds, rest = [type(op) for op in ops], [type(op) for op in without_moves(ops)]
    return kinds in ([Flip, JigsawTiles], [JigsawTiles]) or rest in ([Rotate90], [Rotate45], [AllTurns])


def run(
    images: Tensor,
    ops: Sequence[object],
    draws: Sequence[Mapping[str, Tensor]],
    mean: Sequence[float],
    std: Sequence[float],
    out: Tensor,
) -> None:
    """Compute the result of `ops` into `out`, without waiting for the device; see kernels/fused.py."""
    assert fits(ops), ops
    check_fused_arguments(images, ops, mean, std, out)
    if not len(out):
        return
    images = images.contiguous(memory_format=torch.channels_last)
    scale, offset = scale_and_shift(mean, std)
    factors = scale + offset
    with torch.cuda.device_of(images):
        if isinstance(ops[-1], JigsawTiles):
            _run_jigsaw(images, ops[-1], draws, factors, out)
        else:
            _run_turns(images, ops, draws, factors, out)


def _run_jigsaw(
    images: Tensor, op: JigsawTiles, draws: Sequence[Mapping[str, Tensor]], factors: list[float], out: Tensor
) -> None:
    flipped = len(draws) == 2
    flip = draws[0]["flip"].contiguous().view(torch.uint8) if flipped else images
    parts = triton.cdiv(op.tile_px, _ROWS) * triton.cdiv(op.tile_px, 4 * _QUADS)
    jigsaw_kernel[(len(out) * parts,)](
        images, flip, draws[-1]["offsets"].contiguous(), out, *factors,
        HEIGHT=images.shape[2], WIDTH=images.shape[3], GRID=op.grid, CELL=op.cell_px, TILE=op.tile_px,
        FLIPPED=flipped, ROWS=_ROWS, QUADS=_QUADS, num_warps=_NUM_WARPS,
    )  # fmt: skip


def _run_turns(
    images: Tensor, ops: Sequence[object], draws: Sequence[Mapping[str, Tensor]],
    factors: list[float], out: Tensor,
) -> None:  # fmt: skip
    op, (num_images, _, height, width) = ops[-1], images.shape
    flip, shift, max_px = drawn_moves(ops, draws)
    grid = (num_images * triton.cdiv(height, _SIDE) * triton.cdiv(width, _SIDE),)
    sizes = {"MAX_PX": max_px, "HEIGHT": height, "WIDTH": width, "SIDE": _SIDE, "num_warps": _NUM_WARPS}
    if isinstance(op, AllTurns):
        all_turns_kernel[grid](images, flip, shift, out, *factors, NUM=op.num, **sizes)
    else:
        quarters, turns = not isinstance(op, Rotate90) or op.num == 4, draws[-1]["turns"].contiguous()
        turns_kernel[grid](images, flip, shift, turns, out, *factors, QUARTERS=quarters, **sizes)


@triton.jit
def jigsaw_kernel(
    images, flip, offsets, out, r_scale, g_scale, b_scale, r_shift, g_shift, b_shift,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, GRID: tl.constexpr, CELL: tl.constexpr, TILE: tl.constexpr,
    FLIPPED: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    """Cut ROWS x 4 * QUADS pixels of one tile per program.

    If flip[image] is set they are read from right to left.
    """
    factors = (r_scale, g_scale, b_scale, r_shift, g_shift, b_shift)
    across: tl.constexpr = (TILE + 4 * QUADS - 1) // (4 * QUADS)
    parts: tl.constexpr = across * ((TILE + ROWS - 1) // ROWS)
    program = tl.program_id(0)
    tile = (program // parts).to(tl.int64)
    row, column = program % parts // across * ROWS, program % across * (4 * QUADS)
    image, cell = tile // (GRID * GRID), (tile % (GRID * GRID)).to(tl.int32)
    top = cell // GRID * CELL + tl.load(offsets + tile * 2).to(tl.int32)
    left = cell % GRID * CELL + tl.load(offsets + tile * 2 + 1).to(tl.int32)
    step = 1
    if FLIPPED:
        flipped = tl.load(flip + image).to(tl.int32)
        step = 1 - 2 * flipped
        left = tl.where(flipped == 1, WIDTH - 1 - left, left)
    rows = row + tl.arange(0, ROWS)[:, None]
    columns = column + 4 * tl.arange(0, QUADS)[None, :]
    at = (top + rows) * WIDTH + left + step * columns
    images += image * (3 * HEIGHT * WIDTH)
    quads = load_quads(images, at, step, columns, 1, TILE, rows < TILE, factors, out.dtype.element_ty)
    out += tile * (3 * TILE * TILE)
    store_quads(out, side_by_side(quads, False), row, 1, column, 4, TILE, TILE, ROWS, QUADS)


@triton.jit
def all_turns_kernel(
    images, flip, shift, out, r_scale, g_scale, b_scale, r_shift, g_shift, b_shift,
    NUM: tl.constexpr, MAX_PX: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """Write the NUM turns of each image; a program handles one square of one image."""
    factors = (r_scale, g_scale, b_scale, r_shift, g_shift, b_shift)
    dtype: tl.constexpr = out.dtype.element_ty
    size: tl.constexpr = 3 * HEIGHT * WIDTH
    image, y, x = _square(HEIGHT, WIDTH, SIDE)
    place = placement(image, flip, shift, MAX_PX, WIDTH)
    images += image * size
    out += image * (NUM * size)
    quads = _across(images, y, x, place, factors, dtype, HEIGHT, WIDTH, SIDE)
    _turn_by_halves(out, quads, y, x, False, HEIGHT, WIDTH, SIDE)
    _turn_by_halves(out + NUM // 2 * size, quads, y, x, True, HEIGHT, WIDTH, SIDE)
    if NUM == 4:
        quads_down = _down(images, y, x, place, factors, dtype, HEIGHT, WIDTH, SIDE)
        _turn_by_quarters(out + size, quads_down, y, x, False, HEIGHT, WIDTH, SIDE)
        _turn_by_quarters(out + 3 * size, quads_down, y, x, True, HEIGHT, WIDTH, SIDE)


@triton.jit
def turns_kernel(
    images, flip, shift, turns, out, r_scale, g_scale, b_scale, r_shift, g_shift, b_shift,
    QUARTERS: tl.constexpr, MAX_PX: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    SIDE: tl.constexpr,
):  # fmt: skip
    """Turn each image by its drawn quarters, counter-clockwise; a program handles one square of one image."""
    factors = (r_scale, g_scale, b_scale, r_shift, g_shift, b_shift)
    dtype: tl.constexpr = out.dtype.element_ty
    size: tl.constexpr = 3 * HEIGHT * WIDTH
    image, y, x = _square(HEIGHT, WIDTH, SIDE)
    place = placement(image, flip, shift, MAX_PX, WIDTH)
    images += image * size
    out += image * size
    turn = tl.load(turns + image).to(tl.int32)
    if turn % 2 == 0:
        quads = _across(images, y, x, place, factors, dtype, HEIGHT, WIDTH, SIDE)
        if turn == 0:
            _turn_by_halves(out, quads, y, x, False, HEIGHT, WIDTH, SIDE)
        else:
            _turn_by_halves(out, quads, y, x, True, HEIGHT, WIDTH, SIDE)
    elif QUARTERS:
        quads_down = _down(images, y, x, place, factors, dtype, HEIGHT, WIDTH, SIDE)
        if turn == 1:
            _turn_by_quarters(out, quads_down, y, x, False, HEIGHT, WIDTH, SIDE)
        else:
            _turn_by_quarters(out, quads_down, y, x, True, HEIGHT, WIDTH, SIDE)


@triton.jit
def _square(HEIGHT: tl.constexpr, WIDTH: tl.constexpr, SIDE: tl.constexpr):
    """Return this program's image number, and its square's top and left."""
    across: tl.constexpr = (WIDTH + SIDE - 1) // SIDE
    squares: tl.constexpr = across * ((HEIGHT + SIDE - 1) // SIDE)
    program = tl.program_id(0)
    number = program % squares
    return (program // squares).to(tl.int64), number // across * SIDE, number % across * SIDE


@triton.jit
def _across(
    images, y, x, place, factors, dtype: tl.constexpr, H: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr
):
    """Load the square from (y, x) on, as quads [SIDE, SIDE / 4] of pixels side by side."""
    top, left, step = place
    ys = top + y + tl.arange(0, SIDE)[:, None]
    xs = left + step * (x + 4 * tl.arange(0, SIDE // 4)[None, :])
    return load_quads(images, ys * W + xs, step, xs, step, W, (ys >= 0) & (ys < H), factors, dtype)


@triton.jit
def _down(
    images, y, x, place, factors, dtype: tl.constexpr, H: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr
):
    """Load the square from (y, x) on, as quads [SIDE / 4, SIDE] of pixels below each other.

    A warp still reads along rows.
    """
    top, left, step = place
    ys = top + y + 4 * tl.arange(0, SIDE // 4)[:, None]
    xs = left + step * (x + tl.arange(0, SIDE)[None, :])
    return load_quads(images, ys * W + xs, W, ys, 1, H, (xs >= 0) & (xs < W), factors, dtype)


@triton.jit
def _turn_by_halves(
    out, quads, y, x, TURNED: tl.constexpr, H: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr
):
    """Store the square of `_across` upright, or TURNED by 180 degrees: rows and columns reversed."""
    values = side_by_side(quads, TURNED)
    if TURNED:
        store_quads(out, values, H - 1 - y, -1, W - 4 - x, -4, H, W, SIDE, SIDE // 4)
    else:
        store_quads(out, values, y, 1, x, 4, H, W, SIDE, SIDE // 4)


@triton.jit
def _turn_by_quarters(
    out, quads, y, x, TURNED: tl.constexpr, H: tl.constexpr, W: tl.constexpr, SIDE: tl.constexpr
):
    """Store the square of `_down` into `out` (W x H), turned by 90 degrees, or TURNED by 180 more.

    Columns become rows, with the last one on top.
    """
    values = tl.permute(side_by_side(quads, TURNED), [1, 0, 2, 3, 4, 5])
    if TURNED:
        store_quads(out, values, x, 1, H - 4 - y, -4, W, H, SIDE, SIDE // 4)
    else:
        store_quads(out, values, W - 1 - x, -1, y, 4, W, H, SIDE, SIDE // 4)
