"""The resampling of isotropic windows, compiled by numba; isotropic.py says what they are and why."""

import zlib
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from fastpsl.kernels.isotropic import (
    BLUE,
    COLOUR_SIGMA_PX,
    GREEN,
    HALF,
    LUMA_SIGMA_PX,
    REACH_SIGMAS,
    RED,
    SHRINK_SIGMA,
)

# Called by compiled functions only. Those with fastmath are inlined: the process that compiles the caller
# would otherwise call what was compiled alone, and processes that load the caller from numba's cache the
# copies in it. Their optimisations differ, and so would the sums' last bits.
_CALLED: Any = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


@numba.njit(**_CALLED)
def _taps(
    centre: float, pitch: float, sigma: float, limit: int, first: np.ndarray, weights: np.ndarray
) -> None:
    """Compute each point's first source pixel and its weights from there on, for a line of points."""
    num, num_taps = weights.shape
    between = 1 / sigma
    ratio_of_ratios = np.exp(-between * between)
    for i in range(num):
        point = centre + (i - (num - 1) / 2) * pitch - 0.5  # pixel k lies at k + 0.5
        first[i] = min(max(int(np.ceil(point - REACH_SIGMAS * sigma)), 0), limit - num_taps)
        # exp(-d²/2) at equal distances by its recurrence, because a crop has 30,000 of them.
        distance = (first[i] - point) / sigma
        weight = np.exp(-0.5 * distance * distance)
        ratio = np.exp(-distance * between - 0.5 * between * between)
        total = 0.0
        for k in range(num_taps):
            inside = abs(distance + k * between) <= REACH_SIGMAS
            weights[i, k] = weight if inside else 0.0
            total += weights[i, k]
            weight *= ratio
            ratio *= ratio_of_ratios
        for k in range(num_taps):
            weights[i, k] /= total


@numba.njit(fastmath=True, forceinline=True, **_CALLED)
def _convert(row: np.ndarray, luma: np.ndarray, blue: np.ndarray, red: np.ndarray) -> None:
    """Convert bytes of RGB to luma, blue - luma and red - luma.

    Indices are unsigned because numba would test signed ones for being negative.
    """
    for j in range(np.uint64(len(luma))):
        p = np.uint64(3) * j
        r, g, b = np.float32(row[p]), np.float32(row[p + np.uint64(1)]), np.float32(row[p + np.uint64(2)])
        y = RED * r + GREEN * g + BLUE * b
        luma[j], blue[j], red[j] = y, b - y, r - y


@numba.njit(fastmath=True, forceinline=True, **_CALLED)
def _mix_rows(ring: np.ndarray, first: int, weights: np.ndarray, start: int, line: np.ndarray) -> None:
    """Write the weighted sum of consecutive rows, from row `first` on, into `line`.

    Row i stands at i modulo the ring's length.
    """
    num_rows, num_taps, num = len(ring), len(weights), len(line)
    stop = start + num
    for j in range(num):
        line[j] = 0
    k = 0
    while k + 3 <= num_taps:
        a, b = ring[(first + k) % num_rows, start:stop], ring[(first + k + 1) % num_rows, start:stop]
        c = ring[(first + k + 2) % num_rows, start:stop]
        w0, w1, w2 = weights[k], weights[k + 1], weights[k + 2]
        for j in range(num):
            line[j] += w0 * a[j] + w1 * b[j] + w2 * c[j]
        k += 3
    while k < num_taps:
        a, w0 = ring[(first + k) % num_rows, start:stop], weights[k]
        for j in range(num):
            line[j] += w0 * a[j]
        k += 1


@numba.njit(fastmath=True, forceinline=True, **_CALLED)
def _dot(line: np.ndarray, start: int, weights: np.ndarray) -> np.float32:
    part, total = line[start : start + len(weights)], np.float32(0)
    for k in range(len(weights)):
        total += weights[k] * part[k]
    return total


@numba.njit(**_CALLED)
def _byte(value: np.float32) -> np.uint8:
    return np.uint8(min(max(value + HALF, np.float32(0)), np.float32(255)))


def _compiled(stamp: int) -> Callable[..., None]:
    @numba.njit(cache=True, nogil=True)
    def isotropic_resize(
        pixels: np.ndarray,
        rows: int,
        columns: int,
        top: int,
        left: int,
        side: int,
        diagonal: bool,
        out: np.ndarray,
    ) -> None:
        """Resample one window.

        The box must lie inside with `margin_px`; it is not checked here.

        `pixels` is uint8, RGB, of at least rows * columns * 3 values. `top`, `left` and `side` are those of
        the upright square in source pixels; the window has the same centre. If `diagonal`, the image is
        turned by 45 degrees counter-clockwise. The window is written into `out`, uint8 [S, S, 3].
        """
        if stamp < 0:  # never true: it makes `stamp` a part of the cache's key
            return
        size = len(out)
        step = side / size
        num = 2 * size - 1 if diagonal else size
        pitch = step * np.sqrt(0.5) if diagonal else step
        y, x = top + side / 2, left + side / 2
        sigma, colour_sigma = (
            max(LUMA_SIGMA_PX, SHRINK_SIGMA * step),
            max(COLOUR_SIGMA_PX, SHRINK_SIGMA * step),
        )
        taps = min(int(2 * REACH_SIGMAS * sigma) + 1, rows, columns)
        colour_taps = min(int(2 * REACH_SIGMAS * colour_sigma) + 1, rows, columns)
        first_row, first_column = np.empty(num, np.int64), np.empty(num, np.int64)
        first_colour_row, first_colour_column = np.empty(num, np.int64), np.empty(num, np.int64)
        row_weights, column_weights = np.empty((num, taps), np.float32), np.empty((num, taps), np.float32)
        colour_row_weights = np.empty((num, colour_taps), np.float32)
        colour_column_weights = np.empty((num, colour_taps), np.float32)
        _taps(y, pitch, sigma, rows, first_row, row_weights)
        _taps(x, pitch, sigma, columns, first_column, column_weights)
        _taps(y, pitch, colour_sigma, rows, first_colour_row, colour_row_weights)
        _taps(x, pitch, colour_sigma, columns, first_colour_column, colour_column_weights)
        # The ring holds the last source rows that are still needed, as planes. Its columns count from the
        # first one needed.
        start = first_colour_column[0]
        for k in range(num):
            first_column[k] -= start
            first_colour_column[k] -= start
        width = first_colour_column[num - 1] + colour_taps
        ring = np.empty((3, colour_taps, width), np.float32)
        luma, blue, red = (
            np.empty(width, np.float32),
            np.empty(width, np.float32),
            np.empty(width, np.float32),
        )
        next_row = first_colour_row[0]
        for line in range(num):
            while next_row < first_colour_row[line] + colour_taps:
                p, at = 3 * (next_row * columns + start), next_row % colour_taps
                _convert(pixels[p : p + 3 * width], ring[0, at], ring[1, at], ring[2, at])
                next_row += 1
            # An upright window needs all points of the line, a turned one every second one in its diamond.
            low = abs(line - size + 1) if diagonal else 0
            high = num - 1 - low
            a, b = first_column[low], first_column[high] + taps
            _mix_rows(ring[0], first_row[line], row_weights[line], a, luma[a:b])
            a, b = first_colour_column[low], first_colour_column[high] + colour_taps
            _mix_rows(ring[1], first_colour_row[line], colour_row_weights[line], a, blue[a:b])
            _mix_rows(ring[2], first_colour_row[line], colour_row_weights[line], a, red[a:b])
            for column in range(low, high + 1, 2 if diagonal else 1):
                r = (line - column + size - 1) // 2 if diagonal else line
                c = line - r if diagonal else column
                weights, at = colour_column_weights[column], first_colour_column[column]
                y_here = _dot(luma, first_column[column], column_weights[column])
                b_here, r_here = _dot(blue, at, weights), _dot(red, at, weights)
                out[r, c, 0] = _byte(y_here + r_here)
                out[r, c, 1] = _byte(y_here - (RED * r_here + BLUE * b_here) / GREEN)
                out[r, c, 2] = _byte(y_here + b_here)

    return isotropic_resize


# The constants stand in another file, whose edits numba's cache would not notice.
_CONSTANTS = (LUMA_SIGMA_PX, COLOUR_SIGMA_PX, SHRINK_SIGMA, REACH_SIGMAS, RED, GREEN, BLUE, HALF)
isotropic_resize = _compiled(zlib.crc32(repr(_CONSTANTS).encode()))
