"""The compiled loops of geometric.py: images copied from others along a walk, and normalised.

Numba's cache does not notice an edit of another file, so everything compiled is here and uses no value of
another file. Rows are copied in loops: numba takes 3 s to compile the error of a slice that does not fit.
"""

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
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


@numba.njit(cache=True, nogil=True)
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


@numba.njit(cache=True, nogil=True)
def _inside(start: int, step: int, length: int, num: int) -> tuple[int, int]:
    """Return the range of j in 0 to num - 1 for which start + j * step lies in 0 to length - 1.

    The range is half-open; `step` is -1, 0 or 1.
    """
    if step == 0:
        return (0, num) if 0 <= start < length else (0, 0)
    if step == 1:
        return max(0, -start), min(num, length - start)
    return max(0, start - length + 1), min(num, start + 1)
