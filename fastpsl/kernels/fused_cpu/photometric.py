"""Flip, colour, grey, blur, Sobel or SobelXY and normalisation in one pass on the CPU, image by image.

Each image stays in its core's cache (images.py). The operations one after the other define the result. This
computes the same from the same draws in float32, rounded once. One by one, the operations took 5 to 15 % of a
step of SimCLR or MoCo v2. This was on two cores, at levels 2 and 3.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.blur import GaussianBlur
from fastpsl.kernels.colour import ColourDistortion
from fastpsl.kernels.flip import Flip
from fastpsl.kernels.fused_cpu.threads import Draws, in_threads
from fastpsl.kernels.grey import Grey
from fastpsl.kernels.normalise import check_fused_arguments
from fastpsl.kernels.sobel import Sobel
from fastpsl.kernels.sobel_xy import SobelXY

_ORDERS = (
    (Flip, ColourDistortion, Grey, GaussianBlur, Sobel),
    (Flip, ColourDistortion, Grey, GaussianBlur, SobelXY),
)
# Taps beyond this many sigmas weigh less than 2e-8 of the middle one, nothing in float32.
_REACH_SIGMAS = 6.0
# Bytes of input per thread: about 1 ms of work, because starting a thread takes 0.1 ms, and several ms on a
# busy machine.
_BYTES_PER_THREAD = 1 << 19


def fits(ops: Sequence[object]) -> bool:
    """Return whether `ops` are some or none of the operations of one of `_ORDERS`, in its order."""
    kinds = [type(op) for op in ops]
    return any(kinds == [kind for kind in order if kind in kinds] for order in _ORDERS)


def out_shape(ops: Sequence[object], shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the result's shape for `shape` [B, 3, H, W]; raise ValueError for images that an op refuses."""
    num, channels, height, width = shape
    for op in ops:
        if isinstance(op, GaussianBlur):
            op.check_size(height, width)
        elif isinstance(op, SobelXY):
            channels = 2
    return num, channels, height, width


def run(
    images: Tensor, ops: Sequence[object], draws: Sequence[Mapping[str, Tensor]], mean: Sequence[float],
    std: Sequence[float], out: Tensor,
) -> None:  # fmt: skip
    """Compute the result of `ops` into `out` in as many threads as torch uses; see kernels/fused.py."""
    assert fits(ops), ops
    check_fused_arguments(images, out_shape(ops, images.shape), mean, std, out)
    per_channel = np.array([(1 / s, -m / s) for m, s in zip(mean, std, strict=True)], np.float32)
    scale, shift = per_channel.T.copy()
    from fastpsl.kernels.fused_cpu import photometric_loops  # imports numba, which takes 0.7 s

    in_threads(
        photometric_loops.process_images, partial(_arguments, ops, scale, shift), images, draws, out,
        torch.float32, images.numel() // _BYTES_PER_THREAD,
    )  # fmt: skip


def _arguments(
    ops: Sequence[object], scale: np.ndarray, shift: np.ndarray, pixels: np.ndarray, draws: Draws,
    out: np.ndarray,
) -> tuple[Any, ...]:  # fmt: skip
    """Return the arguments of `process_images`, as `in_threads` asks for them."""
    num = len(pixels)
    never = np.zeros(num, np.bool_)
    # Missing operations are never due, so there is one signature and one compilation for all sets.
    draw_of = {
        (Flip, "flip"): never,
        (ColourDistortion, "apply"): never,
        (ColourDistortion, "order"): np.zeros((num, 4), np.int64),
        (ColourDistortion, "factors"): np.zeros((num, 4), np.float32),
        (Grey, "apply"): never,
        (GaussianBlur, "apply"): never,
        (GaussianBlur, "sigma"): np.ones(num, np.float32),
        (Sobel, "apply"): never,
    }
    kernel_px = 1
    for op, draw in zip(ops, draws, strict=True):
        draw_of |= {(type(op), name): np.ascontiguousarray(value.numpy()) for name, value in draw.items()}
        kernel_px = op.kernel_px if isinstance(op, GaussianBlur) else kernel_px
    flip, coloured, orders, factors, grey, blurred, sigma, sobel = draw_of.values()
    return (
        pixels.reshape(num, pixels.shape[1], -1), flip, coloured, orders, factors, grey,
        *_taps(sigma, blurred, kernel_px), sobel, scale, shift, out,
    )  # fmt: skip


def _taps(sigma: np.ndarray, due: np.ndarray, kernel_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a blur's weights, float32 [B, kernel_px // 2 + 1], and how many of them count, int64 [B].

    The weights go from the middle outwards and sum to 1 over both sides. None count if `due` is False.
    `sigma` and `due` are [B].
    """
    half = kernel_px // 2
    weights = np.exp(-0.5 * (np.arange(half + 1) / sigma[:, None].astype(np.float64)) ** 2)
    weights /= 2 * weights.sum(1, keepdims=True) - 1
    num = np.minimum(half, (_REACH_SIGMAS * sigma).astype(np.int64)) + 1
    return weights.astype(np.float32), np.where(due, num, 0)
