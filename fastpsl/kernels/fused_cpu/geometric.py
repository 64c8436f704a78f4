"""Shift and Flip, then jigsaw tiles, turns or a Hole, normalised, in one pass on the CPU.

Each image is copied along a walk over its source (walks.py). The operations one after the other define the
result. This computes the same from the same draws in float32, rounded once.

Medians of processor time on one core of a shared machine, to float32, for the operations one by one and for
this:

    Flip, JigsawTiles, 32 of 225 px                 20.2 ms    8.2 ms
    Flip, JigsawTiles, 32 of 48 px                  0.77       0.28
    one of four turns, 32 of 224 px                 31.3       3.0
    all four turns, 16 of 224 px                    57.6       21.6
    Shift, Flip, all four turns, 128 of 32 px       5.9        1.0
    Shift, Flip, 128 of 32 px                       2.6        0.37
    Shift, Flip, Hole, 512 of 32 px                 10.2       1.5
    Hole alone, 32 of 96 px                         1.04       0.74
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.flip import Flip
from fastpsl.kernels.fused_cpu.threads import Draws, in_threads
from fastpsl.kernels.hole import Hole
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.normalise import check_fused_arguments
from fastpsl.kernels.rotate45 import Rotate45
from fastpsl.kernels.rotate90 import AllTurns, Rotate90, check_square
from fastpsl.kernels.shift import Shift

# About 1 ms of work, because starting a thread takes 0.1 ms, and several ms on a busy machine.
_VALUES_PER_THREAD = 1 << 20


def fits(ops: Sequence[object]) -> bool:
    """Return whether `ops` are optional moves, then one other operation.

    The moves are Shift and Flip, in this order. The operation is jigsaw tiles, turns or a Hole, and may be
    missing after a Shift.
    """
    kinds = [type(op) for op in ops]
    moves = [kind for kind in (Shift, Flip) if kind in kinds]
    last = kinds[len(moves) :]
    return kinds[: len(moves)] == moves and (
        last in ([JigsawTiles], [Rotate90], [Rotate45], [AllTurns], [Hole]) or (Shift in moves and not last)
    )


def out_shape(ops: Sequence[object], shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the result's shape for `shape` [B, 3, H, W]; raise ValueError for images that an op refuses."""
    op, (num_images, channels, height, width) = ops[-1], shape
    if isinstance(op, JigsawTiles):
        op.check(height, width)
        return num_images * op.grid**2, channels, op.tile_px, op.tile_px
    if isinstance(op, Rotate90 | AllTurns | Rotate45):
        check_square(height, width, 4 if isinstance(op, Rotate45) else op.num)
    elif isinstance(op, Hole):
        op.box(channels, height, width)
    return num_images * (op.num if isinstance(op, AllTurns) else 1), channels, height, width


def run(
    images: Tensor, ops: Sequence[object], draws: Sequence[Mapping[str, Tensor]], mean: Sequence[float],
    std: Sequence[float], out: Tensor,
) -> None:  # fmt: skip
    """Compute the result of `ops` into `out` in as many threads as torch uses; see kernels/fused.py."""
    assert fits(ops), ops
    check_fused_arguments(images, out_shape(ops, images.shape), mean, std, out)
    height, width = out.shape[2:]
    scale = np.tile(np.array([1 / (255 * value) for value in std], np.float32), width)
    shift = np.tile(np.array([-m / s for m, s in zip(mean, std, strict=True)], np.float32), width)
    from fastpsl.kernels.fused_cpu import geometric_loops  # imports numba, which takes 0.7 s

    in_threads(
        geometric_loops.walks, partial(_arguments, ops, scale, shift), images, draws, out, torch.float32,
        out.numel() // _VALUES_PER_THREAD,
    )  # fmt: skip
    if isinstance(ops[-1], Hole):
        rows, columns = ops[-1].box(3, height, width)
        for channel, value in enumerate(ops[-1].fill):
            out[:, channel, rows, columns] = (round(255 * value) / 255 - mean[channel]) / std[channel]


def _arguments(
    ops: Sequence[object], scale: np.ndarray, shift: np.ndarray, pixels: np.ndarray, draws: Draws,
    out: np.ndarray,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """Return the arguments of `walks`, as `in_threads` asks for them."""
    return pixels, _walks(ops, draws, pixels.shape), scale, shift, out.reshape(*out.shape[:2], -1)


def _walks(ops: Sequence[object], draws: Draws, shape: Sequence[int]) -> np.ndarray:
    """Return the walks, int64 [N, 7], as `walks` takes them, for a source of `shape` [B, H, W, 3].

    The loop goes from the last operation to the first and maps each walk's first pixel and steps to the image
    before.
    """
    num, height, width, _ = shape
    source = np.arange(num)
    # Rows and columns of the first pixel, the step down and the step along.
    bottom, right = np.array([[[height - 1], [0], [0]], [[width - 1], [0], [0]]])
    y, x = np.tile([[0], [1], [0]], num), np.tile([[0], [0], [1]], num)
    for op, draw in zip(reversed(ops), reversed(draws), strict=True):
        if isinstance(op, JigsawTiles):
            cells, repeats = np.arange(op.grid**2), op.grid**2
            source, y, x = (values.repeat(repeats, -1) for values in (source, y, x))
            corners = np.stack([cells // op.grid, cells % op.grid], 1) * op.cell_px + draw["offsets"].numpy()
            y[0] += corners[..., 0].reshape(-1)
            x[0] += corners[..., 1].reshape(-1)
        elif isinstance(op, Rotate90 | Rotate45 | AllTurns):
            turns = draw["turns"].numpy()
            repeats = op.num if isinstance(op, AllTurns) else 1
            source, y, x = (values.repeat(repeats, -1) for values in (source, y, x))
            # After a counter-clockwise turn, row i and column j show the former row j and column last - i.
            y, x = (
                np.choose(turns.reshape(-1), [y, x, bottom - y, bottom - x]),
                np.choose(turns.reshape(-1), [x, right - y, right - x, y]),
            )
        elif isinstance(op, Flip):
            flip = draw["flip"].numpy()[source]
            x = np.where(flip, right - x, x)
        elif isinstance(op, Shift):
            moves = draw["shift"].numpy()[source] - op.max_px
            y[0] += moves[:, 0]
            x[0] += moves[:, 1]
    return np.stack([source, y[0], x[0], y[1], x[1], y[2], x[2]], 1)
