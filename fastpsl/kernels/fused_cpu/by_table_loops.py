"""The compiled loop of by_table.py: bytes to entries of a table, and mirrored rows.

Numba's cache does not notice an edit of another file, so everything compiled is here and uses no value of
another file.
"""

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def look_up(
    pixels: np.ndarray, flip: np.ndarray, table: np.ndarray, out: np.ndarray, first: int, step: int
) -> None:
    """Process the images first, first + step, ... of a batch.

    `pixels` is uint8 [B, H, 3 W], and `out` has its shape. `table` [3, 256] has the dtype of `out` and a row
    per channel. An image is mirrored if `flip`, bool [B], is set. Unsigned indices avoid numba's check for
    negative ones.
    """
    num, height, values = pixels.shape
    red, green, blue = table[0], table[1], table[2]
    for b in range(first, num, step):
        start, along = (values - 3, -3) if flip[b] else (0, 3)
        for i in range(height):
            row, line, at = pixels[b, i], out[b, i], start
            for j in range(np.uint64(values // 3)):
                p, q = np.uint64(3) * j, np.uint64(at)
                line[p] = red[row[q]]
                line[p + np.uint64(1)] = green[row[q + np.uint64(1)]]
                line[p + np.uint64(2)] = blue[row[q + np.uint64(2)]]
                at += along
