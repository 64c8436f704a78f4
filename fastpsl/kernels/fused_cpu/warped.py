"""Shift and Flip, then AET's pairs, normalised, in one pass on the CPU.

Each image stays in its core's cache (pairs.py). The operations one after the other define the result. This
computes the same from the same draws in float32, rounded once. Measured as in geometric.py: Shift, Flip and
WarpPair, 512 of 32 px, 37.4 and 7.9 ms; Flip and WarpPair, 32 of 96 px, 13.8 and 4.5 ms.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.flip import Flip
from fastpsl.kernels.fused_cpu.threads import Draws, in_threads
from fastpsl.kernels.normalise import check_fused_arguments
from fastpsl.kernels.shift import Shift
from fastpsl.kernels.warp import WarpPair

# About 1 ms of work, because starting a thread takes 0.1 ms, and several ms on a busy machine.
_PIXELS_PER_THREAD = 1 << 17


def fits(ops: Sequence[object]) -> bool:
    """Return whether `ops` are an optional Shift, an optional Flip, then WarpPair."""
    kinds = [type(op) for op in ops]
    return WarpPair in kinds and kinds == [kind for kind in (Shift, Flip, WarpPair) if kind in kinds]


def out_shape(ops: Sequence[object], shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the result's shape for `shape` [B, 3, H, W]; raise ValueError for images that an op refuses."""
    op, (num_images, channels, height, width) = ops[-1], shape
    assert isinstance(op, WarpPair)
    op.check(height, width)
    return 2 * num_images, channels, height, width


def run(
    images: Tensor, ops: Sequence[object], draws: Sequence[Mapping[str, Tensor]], mean: Sequence[float],
    std: Sequence[float], out: Tensor,
) -> None:  # fmt: skip
    """Compute the result of `ops` into `out` in as many threads as torch uses; see kernels/fused.py."""
    assert fits(ops), ops
    check_fused_arguments(images, out_shape(ops, images.shape), mean, std, out)
    scale = np.array([1 / (255 * value) for value in std], np.float32)
    shift = np.array([-m / s for m, s in zip(mean, std, strict=True)], np.float32)
    from fastpsl.kernels.fused_cpu import warped_loops  # imports numba, which takes 0.7 s

    in_threads(
        warped_loops.pairs, partial(_arguments, ops, scale, shift), images, draws, out, torch.float32,
        images.numel() // 3 // _PIXELS_PER_THREAD,
    )  # fmt: skip


def _arguments(
    ops: Sequence[object], scale: np.ndarray, shift: np.ndarray, pixels: np.ndarray, draws: Draws,
    out: np.ndarray,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    """Return the arguments of `pairs`, as `in_threads` asks for them."""
    num = len(pixels)
    flip, moves = np.zeros(num, np.bool_), np.zeros((num, 2), np.int64)
    for op, draw in zip(ops, draws, strict=True):
        if isinstance(op, Flip):
            flip = np.ascontiguousarray(draw["flip"].numpy())
        elif isinstance(op, Shift):
            moves = np.ascontiguousarray(draw["shift"].numpy()) - op.max_px
    matrices = np.ascontiguousarray(draws[-1]["matrix"].numpy()).reshape(num, 9)
    return pixels, flip, moves, matrices, scale, shift, out
