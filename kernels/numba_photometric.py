"""Flip, colour, grey, blur, Sobel and normalise in one go on the CPU: a picture at a time, in the cache of its core.

The definition is the operations one after the other; this computes the same from the same draws in float32, rounded once. Each
picture is held row by row, the three channels of a row side by side, so that every loop runs along memory. A step of
SimCLR or MoCo v2 on two cores spent 5 to 15 % on the operations one by one, at levels 2 and 3; jigsaw and rotation spend less than 1 %,
so there is no such file for them.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels import colour
from fastpsl.kernels.blur import GaussianBlur
from fastpsl.kernels.colour import ColourDistortion
from fastpsl.kernels.flip import Flip
from fastpsl.kernels.grey import WEIGHTS, Grey
from fastpsl.kernels.normalise import check_mean_and_std
from fastpsl.kernels.sobel import Sobel

_ORDER = (Flip, ColourDistortion, Grey, GaussianBlur, Sobel)
# Numba's cache does not notice an edit of another file: what is compiled holds no value of one.
_CONTRAST, _SATURATION, _HUE = 1, 2, 3
assert (colour.CONTRAST, colour.SATURATION, colour.HUE) == (_CONTRAST, _SATURATION, _HUE)
_RED, _GREEN, _BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
assert [np.float32(weight) for weight in WEIGHTS] == [_RED, _GREEN, _BLUE]
_UNIT = np.float32(1 / 255)
_ZERO, _ONE, _TWO, _FOUR, _SIX = (np.float32(value) for value in (0, 1, 2, 4, 6))
_SIXTH, _EIGHTH = np.float32(1 / 6), np.float32(1 / 8)
# Taps beyond so many sigmas weigh less than 2e-8 of the middle one: nothing in float32.
_REACH_SIGMAS = 6.0
# Bytes of input a thread, about 1 ms of work: starting a thread takes 0.1 ms, and several where others are at work.
_BYTES_PER_THREAD = 1 << 19


def fits(ops: Sequence[object]) -> bool:
    """Whether `ops` are some of Flip, ColourDistortion, Grey, GaussianBlur and Sobel in this order; none is fine, too."""
    kinds = [type(op) for op in ops]
    return kinds == [kind for kind in _ORDER if kind in kinds]


def out_shape(ops: Sequence[object], shape: Sequence[int]) -> tuple[int, int, int, int]:
    """That of the images, [B, 3, H, W]. ValueError where a blur's kernel is larger than they are."""
    num, channels, height, width = shape
    for op in ops:
        if isinstance(op, GaussianBlur):
            op.check_size(height, width)
    return num, channels, height, width


def run(
    images: Tensor, ops: Sequence[object], draws: Sequence[Mapping[str, Tensor]], mean: Sequence[float],
    std: Sequence[float], out: Tensor,
) -> None:  # fmt: skip
    """uint8 [B, 3, H, W], any strides, and the draws of `ops` → `out` [B, 3, H, W], floating, channels-last memory.

    ops: such that `fits`. mean, std: a value a channel, for values in [0, 1]. In as many threads as torch uses.
    """
    assert fits(ops) and out.shape == out_shape(ops, images.shape) and images.dtype == torch.uint8
    assert out.is_contiguous(memory_format=torch.channels_last)
    check_mean_and_std(mean, std, images.shape[1])
    num = len(images)
    if not num:
        return
    scale = torch.tensor([1 / value for value in std])
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])
    if {type(op) for op in ops} <= {Flip}:
        # Torch is as quick, and nothing is compiled for a view of a probe.
        for op, draw in zip(ops, draws, strict=True):
            images = op(images, draw)  # type: ignore[operator]
        torch.addcmul(shift.view(1, 3, 1, 1), images.to(torch.float32), scale.view(1, 3, 1, 1) / 255, out=out)
        return
    never = np.zeros(num, np.bool_)
    # What is not asked for is never due: one signature for every set of operations, so one compilation.
    drawn = {
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
        drawn |= {(type(op), name): np.ascontiguousarray(value.numpy()) for name, value in draw.items()}
        kernel_px = op.kernel_px if isinstance(op, GaussianBlur) else kernel_px
    flip, coloured, orders, factors, grey, blurred, sigma, sobel = drawn.values()
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    result = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    arguments = (
        pixels.reshape(num, pixels.shape[1], -1), flip, coloured, orders, factors, grey,
        *_taps(sigma, blurred, kernel_px), sobel, scale.numpy(), shift.numpy(), result.permute(0, 2, 3, 1).numpy(),
    )  # fmt: skip
    num_threads = max(1, min(torch.get_num_threads(), num, pixels.nbytes // _BYTES_PER_THREAD))
    # Threads of this call alone: numba's own crash when two threads of a process call at once, and a pool that is kept
    # hangs after a fork. Every n-th picture each, as the dear ones may stand together. One is the caller's.
    with ThreadPoolExecutor(num_threads) as pool:
        others = [pool.submit(_pictures, *arguments, part, num_threads) for part in range(1, num_threads)]
        _pictures(*arguments, 0, num_threads)
        for other in others:
            other.result()
    if result is not out:
        out.copy_(result)


def _taps(sigma: np.ndarray, due: np.ndarray, kernel_px: int) -> tuple[np.ndarray, np.ndarray]:
    """sigma, due [B] → a blur's weights from the middle outwards, float32 [B, kernel_px // 2 + 1]; how many count, int64 [B].

    Over both sides they sum to 1. None count where no blur is due.
    """
    half = kernel_px // 2
    weights = np.exp(-0.5 * (np.arange(half + 1) / sigma[:, None].astype(np.float64)) ** 2)
    weights /= 2 * weights.sum(1, keepdims=True) - 1
    num = np.minimum(half, (_REACH_SIGMAS * sigma).astype(np.int64)) + 1
    return weights.astype(np.float32), np.where(due, num, 0)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _load(pixels: np.ndarray, row: np.ndarray) -> None:
    """A row's bytes [3 W], R G B R G B, as float32 [3, W] in [0, 1]."""
    red, green, blue = row[0], row[1], row[2]
    for j in range(np.uint64(len(red))):
        p = np.uint64(3) * j
        red[j] = np.float32(pixels[p]) * _UNIT
        green[j] = np.float32(pixels[p + np.uint64(1)]) * _UNIT
        blue[j] = np.float32(pixels[p + np.uint64(2)]) * _UNIT


@numba.njit(cache=True, nogil=True, fastmath=True)
def _mirror(row: np.ndarray, out: np.ndarray) -> None:
    """[3, W] the other way round, to [3, W or more]."""
    for channel in range(3):
        line, mirrored, width = row[channel], out[channel], row.shape[1]
        for j in range(width):
            mirrored[j] = line[width - 1 - j]


@numba.njit(cache=True, nogil=True, fastmath=True)
def _store(row: np.ndarray, scale: np.ndarray, shift: np.ndarray, out: np.ndarray) -> None:
    """[3, W or more], normalised, to [W, 3]."""
    red, green, blue, line = row[0], row[1], row[2], out.reshape(-1)
    s0, s1, s2, t0, t1, t2 = scale[0], scale[1], scale[2], shift[0], shift[1], shift[2]
    for j in range(np.uint64(len(out))):
        p = np.uint64(3) * j
        line[p] = red[j] * s0 + t0
        line[p + np.uint64(1)] = green[j] * s1 + t1
        line[p + np.uint64(2)] = blue[j] * s2 + t2


@numba.njit(cache=True, nogil=True, fastmath=True)
def _grey_sum(row: np.ndarray) -> np.float32:
    red, green, blue = row[0], row[1], row[2]
    total = _ZERO
    for j in range(len(red)):
        total += red[j] * _RED + green[j] * _GREEN + blue[j] * _BLUE
    return total


@numba.njit(cache=True, nogil=True, fastmath=True)
def _blend(row: np.ndarray, factor: np.float32, other: np.float32) -> None:
    """Brightness (other: black) and contrast (other: the mean grey)."""
    line, addend = row.reshape(-1), other * (_ONE - factor)
    for j in range(len(line)):
        line[j] = min(max(line[j] * factor + addend, _ZERO), _ONE)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _saturate(row: np.ndarray, factor: np.float32) -> None:
    """Saturation: the pixel's grey is the other side; factor 0 makes grey."""
    red, green, blue = row[0], row[1], row[2]
    rest = _ONE - factor
    for j in range(len(red)):
        grey = (red[j] * _RED + green[j] * _GREEN + blue[j] * _BLUE) * rest
        red[j] = min(max(red[j] * factor + grey, _ZERO), _ONE)
        green[j] = min(max(green[j] * factor + grey, _ZERO), _ONE)
        blue[j] = min(max(blue[j] * factor + grey, _ZERO), _ONE)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _less(sixths: np.float32) -> np.float32:
    """The share of the chroma that a channel lacks: 1 around a multiple of a turn, 0 from two sixths on."""
    distance = abs(sixths - _SIX * np.floor(sixths * _SIXTH + np.float32(0.5)))
    return min(max(_TWO - distance, _ZERO), _ONE)


@numba.njit(cache=True, nogil=True, fastmath=True)
def _shift_hue(row: np.ndarray, turns: np.float32) -> None:
    """colour.shift_hue; its offsets 5, 3, 1 are here less by 2, for `_less`."""
    red, green, blue = row[0], row[1], row[2]
    by = _SIX * turns
    for j in range(len(red)):
        r, g, b = red[j], green[j], blue[j]
        value = max(max(r, g), b)
        chroma = value - min(min(r, g), b)
        difference = g - b if value == r else (b - r if value == g else r - g)
        start = _ZERO if value == r else (_TWO if value == g else _FOUR)
        # A grey pixel has a difference and a chroma of 0: any divisor will do.
        sixths = start + by + difference / max(chroma, np.float32(1e-30))
        red[j] = value - chroma * _less(sixths + np.float32(3))
        green[j] = value - chroma * _less(sixths + _ONE)
        blue[j] = value - chroma * _less(sixths - _ONE)


@numba.njit(cache=True, nogil=True)
def _distort(image: np.ndarray, order: np.ndarray, factors: np.ndarray) -> None:
    """[H, 3, W] in place: the four steps in their order. Contrast's mean is that of the whole picture as it is by then."""
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


@numba.njit(cache=True, nogil=True, fastmath=True)
def _weighted(weights: np.ndarray, lines: np.ndarray, at: np.ndarray, width: int, out: np.ndarray) -> None:
    """out = the sum over k of weights[k] * (the parts of `lines` that begin at the middle's start plus and minus k)."""
    middle, w0 = lines[at[0, 0] : at[0, 0] + width], weights[0]
    for j in range(width):
        out[j] = w0 * middle[j]
    for k in range(1, len(weights)):
        one, other = lines[at[k, 0] : at[k, 0] + width], lines[at[k, 1] : at[k, 1] + width]
        weight = weights[k]
        for j in range(width):
            out[j] += weight * (one[j] + other[j])


@numba.njit(cache=True, nogil=True)
def _blur(image: np.ndarray, between: np.ndarray, weights: np.ndarray) -> None:
    """[H, 3, W] in place, reflected at the border; `between` is memory of the same shape."""
    height, _, width = image.shape
    reach = len(weights) - 1
    padded = np.empty(width + 2 * reach, np.float32)
    at = np.empty((reach + 1, 2), np.int64)
    for k in range(reach + 1):
        at[k, 0], at[k, 1] = reach + k, reach - k
    for i in range(height):
        for channel in range(3):
            line = image[i, channel]
            padded[reach : reach + width] = line
            for k in range(1, reach + 1):
                padded[reach - k] = line[k]
                padded[reach + width - 1 + k] = line[width - 1 - k]
            _weighted(weights, padded, at, width, between[i, channel])
    rows, lines = between.reshape(-1), image.reshape(height, 3 * width)
    for i in range(height):
        for k in range(reach + 1):
            below, above = i + k, abs(i - k)
            at[k, 0] = (below if below < height else 2 * (height - 1) - below) * 3 * width
            at[k, 1] = above * 3 * width
        _weighted(weights, rows, at, 3 * width, lines[i])


@numba.njit(cache=True, nogil=True, fastmath=True)
def _sobel(
    above: np.ndarray, middle: np.ndarray, below: np.ndarray, spare: np.ndarray, out: np.ndarray
) -> None:
    """Three rows [W] → one; the border is repeated. spare: memory of [2 or more, W + 2]."""
    width, smooth, steep = len(out), spare[0], spare[1]
    for j in range(width):
        smooth[j + 1] = above[j] + _TWO * middle[j] + below[j]
        steep[j + 1] = below[j] - above[j]
    smooth[0], steep[0] = smooth[1], steep[1]
    smooth[width + 1], steep[width + 1] = smooth[width], steep[width]
    a, c = smooth[:width], smooth[2 : width + 2]
    d, e, f = steep[:width], steep[1 : width + 1], steep[2 : width + 2]
    for j in range(width):
        gx, gy = (c[j] - a[j]) * _EIGHTH, (d[j] + _TWO * e[j] + f[j]) * _EIGHTH
        out[j] = np.sqrt(gx * gx + gy * gy)


@numba.njit(cache=True, nogil=True)
def _pictures(
    pixels: np.ndarray, flip: np.ndarray, coloured: np.ndarray, orders: np.ndarray, factors: np.ndarray,
    grey: np.ndarray, taps: np.ndarray, num_taps: np.ndarray, sobel: np.ndarray, scale: np.ndarray,
    shift: np.ndarray, out: np.ndarray, first: int, step: int,
) -> None:  # fmt: skip
    """Pictures first, first + step, ... of pixels uint8 [B, H, 3 W] → out float32 [B, H, W, 3]."""
    num, height, width, _ = out.shape
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
