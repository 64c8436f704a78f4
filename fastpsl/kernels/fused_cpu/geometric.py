"""Shift and Flip, then jigsaw tiles, turns or a Hole, normalised, in one pass on the CPU.

Each image is copied along a walk over its source. The operations one after the other define the
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

Rows are copied in loops: numba takes 3 s to compile the error of a slice that does not fit.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.fused_cpu.threads import Draws, in_threads
from fastpsl.kernels.geometry import AllTurns, Flip, Hole, Rotate45, Rotate90, Shift
from fastpsl.kernels.jigsaw import JigsawTiles
from fastpsl.kernels.jit import njit
from fastpsl.kernels.normalise import check_fused_arguments, scale_and_shift

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


def run(
    images: Tensor, ops: Sequence[object], draws: Sequence[Mapping[str, Tensor]], mean: Sequence[float],
    std: Sequence[float], out: Tensor,
) -> None:  # fmt: skip
    """Compute the result of `ops` into `out` in as many threads as torch uses; see kernels/fused.py."""
    assert fits(ops), ops
    check_fused_arguments(images, ops, mean, std, out)
    height, width = out.shape[2:]
    scale, shift = np.tile(np.array(scale_and_shift(mean, std), np.float32), width)
    in_threads(
        walks, partial(_arguments, ops, scale, shift), images, draws, out, torch.float32,
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


@njit(cache=True, nogil=True)
def walks(
    pixels: np.ndarray, steps: np.ndarray, scale: np.ndarray, shift: np.ndarray, out: np.ndarray,
    first: int, step: int,
) -> None:  # fmt: skip
    """Process the images first, first + step, ... of `out`, float32 [N, h, 3 w].

    `pixels` is uint8 [B, H, W, 3]; `scale` and `shift` are float32 [3 w]. `steps`, int64 [N, 7], has a walk
    per image: the source's index, the first pixel's row and column there, what one pixel down adds to both,
    and what one pixel along adds. Pixels outside the source are black.
    """
    num, height, values = out.shape
    width = values // 3
    source_height, source_width = pixels.shape[1], pixels.shape[2]
    row = np.empty(values, np.uint8)
    for n in range(first, num, step):
        source, y, x, down_y, down_x, along_y, along_x = steps[n]
        image = pixels[source].reshape(-1)
        along = 3 * (along_y * source_width + along_x)
        for i in range(height):
            start, stop = _inside(y, along_y, source_height, width)
            left, right = _inside(x, along_x, source_width, width)
            start, stop = max(start, left), min(stop, right)
            if start > 0 or stop < width:
                for k in range(values):
                    row[k] = 0
            if start < stop:
                at = 3 * (y * source_width + x) + start * along
                _copy(image, at, along, row[3 * start : 3 * stop])
            line = out[n, i]
            for k in range(values):
                line[k] = np.float32(row[k]) * scale[k] + shift[k]
            y += down_y
            x += down_x


@njit(cache=True, nogil=True)
def _copy(image: np.ndarray, at: int, along: int, row: np.ndarray) -> None:
    """Copy pixels of three bytes that are `along` bytes apart."""
    if along == 3:
        piece = image[at : at + len(row)]
        for k in range(len(row)):
            row[k] = piece[k]
        return
    for j in range(np.uint64(len(row) // 3)):
        p, q = np.uint64(at + np.int64(j) * along), np.uint64(3) * j
        row[q] = image[p]
        row[q + np.uint64(1)] = image[p + np.uint64(1)]
        row[q + np.uint64(2)] = image[p + np.uint64(2)]


@njit(cache=True, nogil=True)
def _inside(start: int, step: int, length: int, num: int) -> tuple[int, int]:
    """Return the range of j in 0 to num - 1 for which start + j * step lies in 0 to length - 1.

    The range is half-open; `step` is -1, 0 or 1.
    """
    if step == 0:
        return (0, num) if 0 <= start < length else (0, 0)
    if step == 1:
        return max(0, -start), min(num, length - start)
    return max(0, start - length + 1), min(num, start + 1)
