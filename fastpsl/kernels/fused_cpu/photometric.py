"""Flip, colour, grey, blur, Sobel or SobelXY and normalisation in one pass on the CPU, image by image.

Each image stays in its core's cache. The operations one after the other define the result. This
computes the same from the same draws in float32, rounded once. One by one, the operations took 5 to 15 % of a
step of SimCLR or MoCo v2. This was on two cores, at levels 2 and 3.

An image is stored row by row, with the three channels of a row side by side, so that every loop runs along
memory.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.colour import ColourDistortion, Grey
from fastpsl.kernels.filters import GaussianBlur, Sobel, SobelXY
from fastpsl.kernels.fused_cpu.threads import Draws, in_threads
from fastpsl.kernels.geometry import Flip
from fastpsl.kernels.jit import njit
from fastpsl.kernels.normalise import check_fused_arguments, scale_and_shift

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


def run(
    images: Tensor, ops: Sequence[object], draws: Sequence[Mapping[str, Tensor]], mean: Sequence[float],
    std: Sequence[float], out: Tensor,
) -> None:  # fmt: skip
    """Compute the result of `ops` into `out` in as many threads as torch uses; see kernels/fused.py."""
    assert fits(ops), ops
    check_fused_arguments(images, ops, mean, std, out)
    scale, shift = np.array(scale_and_shift(mean, std, 1.0), np.float32)
    in_threads(
        process_images, partial(_arguments, ops, scale, shift), images, draws, out,
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
    with np.errstate(under="ignore"):  # far taps are 0, whatever the user's program asks of numpy
        weights = np.exp(-0.5 * (np.arange(half + 1) / sigma[:, None].astype(np.float64)) ** 2)
        weights /= 2 * weights.sum(1, keepdims=True) - 1
        weights = weights.astype(np.float32)
    num = np.minimum(half, (_REACH_SIGMAS * sigma).astype(np.int64)) + 1
    return weights, np.where(due, num, 0)


# The operation numbers and the weights of kernels/colour.py.
_CONTRAST, _SATURATION, _HUE = 1, 2, 3
_RED, _GREEN, _BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
_UNIT = np.float32(1 / 255)
_ZERO, _ONE, _TWO, _FOUR, _SIX = (np.float32(value) for value in (0, 1, 2, 4, 6))
_THIRD, _SIXTH, _EIGHTH = np.float32(1 / 3), np.float32(1 / 6), np.float32(1 / 8)
# Everything is inlined in process_images. The process that compiles it would otherwise call functions that
# were compiled alone, and processes that load it from numba's cache the copies in it. Their optimisations
# differ, and so would the last bits.
_INLINED: Any = {"nogil": True, "forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


@njit(fastmath=True, **_INLINED)
def _load(pixels: np.ndarray, row: np.ndarray) -> None:
    """Convert a row's bytes [3 W], R G B R G B, to float32 [3, W] in [0, 1]."""
    red, green, blue = row[0], row[1], row[2]
    for j in range(np.uint64(len(red))):
        p = np.uint64(3) * j
        red[j] = np.float32(pixels[p]) * _UNIT
        green[j] = np.float32(pixels[p + np.uint64(1)]) * _UNIT
        blue[j] = np.float32(pixels[p + np.uint64(2)]) * _UNIT


@njit(fastmath=True, **_INLINED)
def _mirror(row: np.ndarray, out: np.ndarray) -> None:
    """Copy a row [3, W], reversed, to [3, W or more]."""
    for channel in range(3):
        line, mirrored, width = row[channel], out[channel], row.shape[1]
        for j in range(width):
            mirrored[j] = line[width - 1 - j]


@njit(fastmath=True, **_INLINED)
def _store(row: np.ndarray, scale: np.ndarray, shift: np.ndarray, out: np.ndarray) -> None:
    """Normalise a row [3, W or more] into [W, 3]."""
    red, green, blue, line = row[0], row[1], row[2], out.reshape(-1)
    s0, s1, s2, t0, t1, t2 = scale[0], scale[1], scale[2], shift[0], shift[1], shift[2]
    for j in range(np.uint64(len(out))):
        p = np.uint64(3) * j
        line[p] = red[j] * s0 + t0
        line[p + np.uint64(1)] = green[j] * s1 + t1
        line[p + np.uint64(2)] = blue[j] * s2 + t2


@njit(fastmath=True, **_INLINED)
def _grey_sum(row: np.ndarray) -> np.float32:
    red, green, blue = row[0], row[1], row[2]
    total = _ZERO
    for j in range(len(red)):
        total += red[j] * _RED + green[j] * _GREEN + blue[j] * _BLUE
    return total


@njit(fastmath=True, **_INLINED)
def _blend(row: np.ndarray, factor: np.float32, other: np.float32) -> None:
    """Blend a row with black (brightness) or with the mean grey (contrast)."""
    line, addend = row.reshape(-1), other * (_ONE - factor)
    for j in range(len(line)):
        line[j] = min(max(line[j] * factor + addend, _ZERO), _ONE)


@njit(fastmath=True, **_INLINED)
def _saturate(row: np.ndarray, factor: np.float32) -> None:
    """Blend each pixel of a row with its grey (saturation); factor 0 makes the row grey."""
    red, green, blue = row[0], row[1], row[2]
    rest = _ONE - factor
    for j in range(len(red)):
        grey = (red[j] * _RED + green[j] * _GREEN + blue[j] * _BLUE) * rest
        red[j] = min(max(red[j] * factor + grey, _ZERO), _ONE)
        green[j] = min(max(green[j] * factor + grey, _ZERO), _ONE)
        blue[j] = min(max(blue[j] * factor + grey, _ZERO), _ONE)


@njit(fastmath=True, **_INLINED)
def _less(sixths: np.float32) -> np.float32:
    """Return the share of the chroma that a channel lacks: 1 at whole turns, 0 from two sixths away on."""
    distance = abs(sixths - _SIX * np.floor(sixths * _SIXTH + np.float32(0.5)))
    return min(max(_TWO - distance, _ZERO), _ONE)


@njit(fastmath=True, **_INLINED)
def _shift_hue(row: np.ndarray, turns: np.float32) -> None:
    """Move the hue of a row as colour.shift_hue. Its offsets 5, 3, 1 are less by 2 here, for `_less`."""
    red, green, blue = row[0], row[1], row[2]
    by = _SIX * turns
    for j in range(len(red)):
        r, g, b = red[j], green[j], blue[j]
        value = max(max(r, g), b)
        chroma = value - min(min(r, g), b)
        difference = g - b if value == r else (b - r if value == g else r - g)
        start = _ZERO if value == r else (_TWO if value == g else _FOUR)
        # A grey pixel has a difference and a chroma of 0, so any divisor will do.
        sixths = start + by + difference / max(chroma, np.float32(1e-30))
        red[j] = value - chroma * _less(sixths + np.float32(3))
        green[j] = value - chroma * _less(sixths + _ONE)
        blue[j] = value - chroma * _less(sixths - _ONE)


@njit(**_INLINED)
def _distort(image: np.ndarray, order: np.ndarray, factors: np.ndarray) -> None:
    """Distort an image [H, 3, W] in place by the four operations in the given order.

    Contrast takes the mean of the whole image as it is at that point.
    """
    height, _, width = image.shape
    for op in order:
        mean = _ZERO
        if op == _CONTRAST:
            total = np.float64(0)
            for i in range(height):
                total += _grey_sum(image[i])
            mean = np.float32(total / (height * width))
        for i in range(height):
            if op == _HUE:
                _shift_hue(image[i], factors[_HUE])
            elif op == _SATURATION:
                _saturate(image[i], factors[_SATURATION])
            else:
                _blend(image[i], factors[op], mean)


@njit(fastmath=True, **_INLINED)
def _weighted(weights: np.ndarray, lines: np.ndarray, at: np.ndarray, width: int, out: np.ndarray) -> None:
    """Write the sum over k of weights[k] times the parts of `lines` that start at at[k, 0] and at[k, 1]."""
    middle, w0 = lines[at[0, 0] : at[0, 0] + width], weights[0]
    for j in range(width):
        out[j] = w0 * middle[j]
    for k in range(1, len(weights)):
        one, other = lines[at[k, 0] : at[k, 0] + width], lines[at[k, 1] : at[k, 1] + width]
        weight = weights[k]
        for j in range(width):
            out[j] += weight * (one[j] + other[j])


@njit(**_INLINED)
def _blur(image: np.ndarray, between: np.ndarray, weights: np.ndarray) -> None:
    """Blur an image [H, C, W] in place, reflected at the border; `between` is memory of the same shape."""
    height, channels, width = image.shape
    reach = len(weights) - 1
    padded = np.empty(width + 2 * reach, np.float32)
    at = np.empty((reach + 1, 2), np.int64)
    for k in range(reach + 1):
        at[k, 0], at[k, 1] = reach + k, reach - k
    for i in range(height):
        for channel in range(channels):
            line = image[i, channel]
            for j in range(width):
                padded[reach + j] = line[j]
            for k in range(1, reach + 1):
                padded[reach - k] = line[k]
                padded[reach + width - 1 + k] = line[width - 1 - k]
            _weighted(weights, padded, at, width, between[i, channel])
    rows, lines = between.reshape(-1), image.reshape(height, channels * width)
    for i in range(height):
        for k in range(reach + 1):
            below, above = i + k, abs(i - k)
            at[k, 0] = (below if below < height else 2 * (height - 1) - below) * channels * width
            at[k, 1] = above * channels * width
        _weighted(weights, rows, at, channels * width, lines[i])


@njit(fastmath=True, **_INLINED)
def _down(
    above: np.ndarray, middle: np.ndarray, below: np.ndarray, smooth: np.ndarray, steep: np.ndarray
) -> None:
    """Compute sums and differences down the columns of three rows [W], into [W + 2], the border repeated."""
    width = len(middle)
    for j in range(width):
        smooth[j + 1] = above[j] + _TWO * middle[j] + below[j]
        steep[j + 1] = below[j] - above[j]
    smooth[0], steep[0] = smooth[1], steep[1]
    smooth[width + 1], steep[width + 1] = smooth[width], steep[width]


@njit(fastmath=True, **_INLINED)
def _sobel(
    above: np.ndarray, middle: np.ndarray, below: np.ndarray, spare: np.ndarray, out: np.ndarray
) -> None:
    """Compute a row of gradient magnitudes from three rows [W]; `spare` is memory of [2 or more, W + 2]."""
    width, smooth, steep = len(out), spare[0], spare[1]
    _down(above, middle, below, smooth, steep)
    a, c = smooth[:width], smooth[2 : width + 2]
    d, e, f = steep[:width], steep[1 : width + 1], steep[2 : width + 2]
    for j in range(width):
        gx, gy = (c[j] - a[j]) * _EIGHTH, (d[j] + _TWO * e[j] + f[j]) * _EIGHTH
        out[j] = np.sqrt(gx * gx + gy * gy)


@njit(fastmath=True, **_INLINED)
def _mean(row: np.ndarray, mirrored: bool, out: np.ndarray) -> None:
    """Compute the mean of a row's channels, [3, W] to [W], reversed if `mirrored`."""
    red, green, blue, width = row[0], row[1], row[2], len(out)
    for j in range(width):
        out[j] = (red[j] + green[j] + blue[j]) * _THIRD
    if mirrored:
        for j in range(width // 2):
            out[j], out[width - 1 - j] = out[width - 1 - j], out[j]


@njit(fastmath=True, **_INLINED)
def _sobel_xy(
    above: np.ndarray, middle: np.ndarray, below: np.ndarray, spare: np.ndarray, scale: np.ndarray,
    shift: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """Compute a row of gradients along x and y, normalised by `scale` and `shift` [2], as `out` [W, 2]."""
    width, smooth, steep, line = len(middle), spare[0], spare[1], out.reshape(-1)
    _down(above, middle, below, smooth, steep)
    s0, s1, t0, t1 = scale[0] * _EIGHTH, scale[1] * _EIGHTH, shift[0], shift[1]
    for j in range(np.uint64(width)):
        k = j + np.uint64(1)
        after = k + np.uint64(1)
        line[np.uint64(2) * j] = (smooth[after] - smooth[j]) * s0 + t0
        line[np.uint64(2) * j + np.uint64(1)] = (steep[j] + _TWO * steep[k] + steep[after]) * s1 + t1


@njit(**_INLINED)
def _gradients(
    image: np.ndarray, mirrored: bool, weights: np.ndarray, memory: np.ndarray, spare: np.ndarray,
    scale: np.ndarray, shift: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """Compute the gradients [H, W, 2] of the mean of an image's channels, blurred if there are weights.

    `image` and `memory` are [H, 3, W].
    """
    height, _, width = image.shape
    flat, size = memory.reshape(-1), height * width
    grey, between = flat[:size].reshape(height, 1, width), flat[size : 2 * size].reshape(height, 1, width)
    for i in range(height):
        _mean(image[i], mirrored, grey[i, 0])
    if len(weights):
        _blur(grey, between, weights)
    for i in range(height):
        above, below = grey[max(i - 1, 0), 0], grey[min(i + 1, height - 1), 0]
        _sobel_xy(above, grey[i, 0], below, spare, scale, shift, out[i])


@njit(cache=True, nogil=True)
def process_images(
    pixels: np.ndarray, flip: np.ndarray, coloured: np.ndarray, orders: np.ndarray, factors: np.ndarray,
    grey: np.ndarray, taps: np.ndarray, num_taps: np.ndarray, sobel: np.ndarray, scale: np.ndarray,
    shift: np.ndarray, out: np.ndarray, first: int, step: int,
) -> None:  # fmt: skip
    """Process the images first, first + step, ... of a batch.

    `pixels` is uint8 [B, H, 3 W]. `out` is float32 [B, H, W, 3], or [B, H, W, 2] for SobelXY.
    """
    num, height, width, channels = out.shape
    image, other = np.empty((height, 3, width), np.float32), np.empty((height, 3, width), np.float32)
    spare = np.empty((3, width + 2), np.float32)
    for b in range(first, num, step):
        for i in range(height):
            _load(pixels[b, i], image[i])
        if coloured[b]:
            _distort(image, orders[b], factors[b])
        if grey[b]:
            for i in range(height):
                _saturate(image[i], _ZERO)
        if channels == 2:
            weights = taps[b, : num_taps[b]]
            _gradients(image, flip[b], weights, other, spare, scale, shift, out[b])
            continue
        if num_taps[b]:
            _blur(image, other, taps[b, : num_taps[b]])
        if sobel[b]:
            for i in range(height):
                above, below = image[max(i - 1, 0)], image[min(i + 1, height - 1)]
                for channel in range(3):
                    _sobel(above[channel], image[i, channel], below[channel], spare, other[i, channel])
            image, other = other, image
        for i in range(height):
            row = image[i]
            if flip[b]:
                _mirror(row, spare)
                row = spare
            _store(row, scale, shift, out[b, i])
