"""Windows upright or turned by 45 degrees, sampled so that nothing but their content tells which.

A network that is to name eight angles must not read them off the resampling. Pixels lie on a square lattice, so whatever
a kernel lets through at the lattice's own frequencies shows the angle to it. Here both windows go through Gaussians
on the decoded source, which are isotropic, and so wide that the lattice sinks below what rounding to 8 bits leaves:

    luma        sigma = 1 source pixel: from 0.9 on, white noise tells a detector nothing (0.8 does: 84 % right)
    colour      sigma = 3 source pixels, 1.5 of the half-resolution lattice on which JPEG's 4:2:0 stores colour
    shrinking   sigma >= 0.5 output pixels, against aliasing; leaks ask for source pixels only
    cut         at 4.25 sigma along both axes, weights made to sum to 1. A cut shows by its own square shape: at 3 (100 %),
                3.5 (66 %) and, enlarged, at 4 (54 %)

All figures: base 0 or 45, chance 50 %, by ridge regression on spectra of luma and colour and of their local power, trained on
400 to 3,000 views of 96 to 224 px. White noise: 49 to 51 %; stored as JPEG 4:2:0 of quality 90: 52 % at most (standard error 1.3),
with colour at sigma 1: 100 %, 1.5: 96 %, 2: 57 %; of quality 75: 61 %. What remains is in the file, not in the resampling: of
photos turned by random angles, then stored with quality 90 (75), 128-px views tell 60 % (77 %) by the blocks of their
colour; with colour at sigma 1: 99 % (100 %). tests/pipelines/test_rotation_leak.py holds what is claimed.

It costs sharpness: of photos with shorter side 375 (500), a default view keeps 64 % (74 %) of the mean gradient that an
area resize has. And time: 0.9 ms upright, 1.15 ms turned for 375 x 500 to 224 on one EPYC core.

Grid points of a lattice turned by 45 degrees lie on another, finer upright lattice: point (r, c) on its line r + c and
column c - r. So both windows are separable, and come from the same two passes of 1-D weights.
"""

from typing import Any

import numba
import numpy as np

# The fifth number of a box (pipelines/decoders/codes.py): an upright window, or one turned by 45 degrees.
ISOTROPIC = 1
DIAGONAL = 2

LUMA_SIGMA_PX = 1.0
COLOUR_SIGMA_PX = 3.0
SHRINK_SIGMA = 0.5
REACH_SIGMAS = 4.25
# JPEG's luma (ITU-R BT.601); colour is kept as blue - luma and red - luma.
RED, GREEN, BLUE = np.float32(0.299), np.float32(0.587), np.float32(0.114)
# Halves go up for sure: the sums behind them depend on the order of addition.
HALF = np.float32(0.5 + 2**-13)


def margin_px(side: Any, size_px: int) -> Any:
    """How many source pixels around an upright square of `side` (integer, or an array of them) both windows need, the
    kernel's reach included: whole numbers as float64."""
    sigma = np.maximum(COLOUR_SIGMA_PX, SHRINK_SIGMA * side / size_px)
    return np.ceil(side * (np.sqrt(0.5) - 0.5) + REACH_SIGMAS * sigma)


_margin_px = numba.njit(margin_px)


def largest_side_px(shorter_px: np.ndarray, size_px: int) -> np.ndarray:
    """float64: the largest side with side + 2 * margin_px(side) <= shorter_px, up to a pixel or two; may be negative."""
    room = np.asarray(shorter_px, np.float64) - 2
    enlarged = (room - 2 * REACH_SIGMAS * COLOUR_SIGMA_PX) / np.sqrt(2)
    shrunk = room / (np.sqrt(2) + 2 * REACH_SIGMAS * SHRINK_SIGMA / size_px)
    return np.minimum(enlarged, shrunk)


@numba.njit(cache=True, nogil=True)
def _taps(
    centre: float, pitch: float, sigma: float, limit: int, first: np.ndarray, weights: np.ndarray
) -> None:
    """Per point of a line of them: the first source pixel that it sees, and the weights from there on."""
    num, num_taps = weights.shape
    between = 1 / sigma
    ratio_of_ratios = np.exp(-between * between)
    for i in range(num):
        point = centre + (i - (num - 1) / 2) * pitch - 0.5  # pixel k lies at k + 0.5
        first[i] = min(max(int(np.ceil(point - REACH_SIGMAS * sigma)), 0), limit - num_taps)
        # exp(-d²/2) at equal distances, by its recurrence: a crop has 30,000 of them.
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


@numba.njit(cache=True, nogil=True, fastmath=True)
def _convert(row: np.ndarray, luma: np.ndarray, blue: np.ndarray, red: np.ndarray) -> None:
    """Bytes of RGB → luma, blue - luma, red - luma; unsigned indices spare numba's test for negative ones."""
    for j in range(np.uint64(len(luma))):
        p = np.uint64(3) * j
        r, g, b = np.float32(row[p]), np.float32(row[p + np.uint64(1)]), np.float32(row[p + np.uint64(2)])
        y = RED * r + GREEN * g + BLUE * b
        luma[j], blue[j], red[j] = y, b - y, r - y


@numba.njit(cache=True, nogil=True, fastmath=True)
def _mix_rows(ring: np.ndarray, first: int, weights: np.ndarray, start: int, line: np.ndarray) -> None:
    """line = the weighted sum of as many rows from row `first` on; rows stand in the ring by their number's remainder."""
    num_rows, num_taps, num = len(ring), len(weights), len(line)
    stop = start + num
    line[:] = 0
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


@numba.njit(cache=True, nogil=True, fastmath=True)
def _dot(line: np.ndarray, start: int, weights: np.ndarray) -> np.float32:
    part, total = line[start : start + len(weights)], np.float32(0)
    for k in range(len(weights)):
        total += weights[k] * part[k]
    return total


@numba.njit(cache=True, nogil=True)
def _byte(value: np.float32) -> np.uint8:
    return np.uint8(min(max(value + HALF, np.float32(0)), np.float32(255)))


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
    """`pixels` (uint8, at least rows * columns * 3, RGB) → `out` (uint8 [S, S, 3]).

    The window's centre is that of the upright square (top, left, side; source px); `diagonal` shows the picture turned by
    45 degrees counter-clockwise. `fits_isotropic` must hold of it, which nobody checks here.
    """
    size = len(out)
    step = side / size
    num = 2 * size - 1 if diagonal else size
    pitch = step * np.sqrt(0.5) if diagonal else step
    y, x = top + side / 2, left + side / 2
    sigma, colour_sigma = max(LUMA_SIGMA_PX, SHRINK_SIGMA * step), max(COLOUR_SIGMA_PX, SHRINK_SIGMA * step)
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
    # The last rows of the source that are still needed, in planes; columns count from the first that is seen.
    start = first_colour_column[0]
    first_column -= start
    first_colour_column -= start
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
        # An upright window needs all points of the line; a turned one every second of them, inside of its diamond.
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


@numba.njit(cache=True, nogil=True)
def fits_isotropic(
    rows: int, columns: int, top: int, left: int, height: int, width: int, size_px: int
) -> bool:
    """Whether a box is a square around which both windows lie in the picture, the kernel's reach included."""
    if height != width or height < 1:
        return False
    margin = int(_margin_px(height, size_px))
    return (
        top >= margin
        and left >= margin
        and top + height + margin <= rows
        and left + width + margin <= columns
    )
