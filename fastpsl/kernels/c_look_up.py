"""The binding of look_up.c. Where it was not built, numba does the same (fused_cpu/by_table_loops.py)."""

import ctypes
import functools
from collections.abc import Callable

import numpy as np

from fastpsl.kernels.c_library import open_library


@functools.cache
def look_up() -> Callable[..., None] | None:
    """Return the loop, loaded once per process, or None where it was not built or does not load.

    It takes what `by_table_loops.look_up` does, arrays in contiguous memory. Before them it takes `factors`:
    float32 [2, 3], the scale and the shift of each channel of a table of floats, or None.
    """
    try:
        function = open_library("fastpsl.kernels._look_up").fastpsl_look_up
    except OSError:
        return None
    function.argtypes = [*(ctypes.c_void_p,) * 4, *(ctypes.c_int64,) * 6, ctypes.c_void_p]
    function.restype = None

    def loop(
        factors: np.ndarray | None, pixels: np.ndarray, flip: np.ndarray, table: np.ndarray, out: np.ndarray,
        first: int, step: int,
    ) -> None:  # fmt: skip
        num, height, values = pixels.shape
        places = (array.ctypes.data for array in (pixels, flip, table, out))
        sizes = num, height, values // 3, out.itemsize, first, step
        function(*places, *sizes, None if factors is None else factors.ctypes.data)

    return loop
