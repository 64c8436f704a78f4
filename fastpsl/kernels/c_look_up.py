"""The binding of look_up.c. Where it was not built, numba does the same (fused_cpu/by_table_loops.py)."""

import ctypes
import functools
from collections.abc import Callable

import numpy as np

from fastpsl.kernels.c_library import open_library


@functools.cache
def look_up() -> Callable[..., None] | None:
    """Return the loop, loaded once per process, or None where it was not built or does not load.

    It takes what `by_table_loops.look_up` does, arrays in contiguous memory.
    """
    try:
        function = open_library("fastpsl.kernels._look_up").fastpsl_look_up
    except OSError:
        return None
    function.argtypes = [*(ctypes.c_void_p,) * 4, *(ctypes.c_int64,) * 6]
    function.restype = None

    def loop(
        pixels: np.ndarray, flip: np.ndarray, table: np.ndarray, out: np.ndarray, first: int, step: int
    ) -> None:
        num, height, values = pixels.shape
        places = (array.ctypes.data for array in (pixels, flip, table, out))
        function(*places, num, height, values // 3, out.itemsize, first, step)

    return loop
