"""Bindings of draws.c. Where it was not built, NumPy computes the same numbers (draws.py, crops.py)."""

import ctypes
import functools

from fastpsl.kernels.c_library import open_library


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the library, loaded once per process, or None where it was not built or does not load."""
    try:
        library = open_library("fastpsl.kernels._draws")
    except OSError:
        return None
    pointer, i64, u32, f64 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint32, ctypes.c_double
    library.fastpsl_words.argtypes = [pointer, i64, i64, *(u32,) * 4, pointer]
    library.fastpsl_words.restype = None
    library.fastpsl_random_resized.argtypes = [*(pointer,) * 3, i64, *(f64,) * 4, pointer]
    library.fastpsl_random_resized.restype = None
    return library
