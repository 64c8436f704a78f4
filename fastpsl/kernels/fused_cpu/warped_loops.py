"""The compiled loops of warped.py: images and their warped copies, in a core's cache.

Numba's cache does not notice an edit of another file, so everything compiled is here and uses no value of
another file.
"""

import numba
import numpy as np

# The grey of kernels/warp.py.
_GREY = np.float32(128)
_ZERO, _HALF = np.float32(0), np.float32(0.5)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def pairs(
    pixels: np.ndarray, flip: np.ndarray, moves: np.ndarray, matrices: np.ndarray, scale: np.ndarray,
    shift: np.ndarray, out: np.ndarray, first: int, step: int,
) -> None:  # fmt: skip
    """Process the images first, first + step, ... of `pixels`, uint8 [B, S, S, 3].

    `out` is float32 [2 * B, S, S, 3], normalised by `scale` and `shift` [3]. `moves`, int64 [B, 2], moves an
    image's content up and left by that many rows and columns. Then it is flipped if `flip` is set. `matrices`
    is float32 [B, 9].
    """
    num, side = pixels.shape[0], pixels.shape[1]
    moved = np.empty((side, side, 3), np.float32)
    for b in range(first, num, step):
        for y in range(side):
            for x in range(side):
                row = y + moves[b, 0]
                column = (side - 1 - x if flip[b] else x) + moves[b, 1]
                there = 0 <= row < side and 0 <= column < side
                for channel in range(3):
                    value = np.float32(pixels[b, row, column, channel]) if there else _ZERO
                    moved[y, x, channel] = value
                    out[2 * b, y, x, channel] = value * scale[channel] + shift[channel]
        _warp(moved, matrices[b], scale, shift, out[2 * b + 1])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _warp(moved: np.ndarray, m: np.ndarray, scale: np.ndarray, shift: np.ndarray, out: np.ndarray) -> None:
    """Write the warped copy of an image [S, S, 3], bilinear, rounded to integers, then normalised."""
    side = len(moved)
    length, last = np.float32(side), side - 1
    for i in range(side):
        y = np.float32(i) + _HALF
        for j in range(side):
            x = np.float32(j) + _HALF
            w = m[6] * x + m[7] * y + m[8]
            u, v = (m[0] * x + m[1] * y + m[2]) / w, (m[3] * x + m[4] * y + m[5]) / w
            inside = u >= _ZERO and u < length and v >= _ZERO and v < length
            if inside:
                u = min(max(u - _HALF, _ZERO), np.float32(last))
                v = min(max(v - _HALF, _ZERO), np.float32(last))
                x_0, y_0 = int(u), int(v)
                x_1, y_1 = min(x_0 + 1, last), min(y_0 + 1, last)
                right, below = u - np.float32(x_0), v - np.float32(y_0)
            for channel in range(3):
                value = _GREY
                if inside:
                    a, b = moved[y_0, x_0, channel], moved[y_0, x_1, channel]
                    c, d = moved[y_1, x_0, channel], moved[y_1, x_1, channel]
                    high, low = a + (b - a) * right, c + (d - c) * right
                    value = np.rint(high + (low - high) * below)
                out[i, j, channel] = value * scale[channel] + shift[channel]
