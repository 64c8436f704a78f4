"""Bindings of our C library (turbo.c, area.c): parts of JPEGs are decoded, and boxes resized.

The functions are for code compiled with `njit(cache=True, nogil=True)`. They name external symbols, which are
registered in each process when this module is imported (libffcv.py says why).
"""

import ctypes
import functools
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
from numba import njit, types

INSTALL = "a wheel of fastpsl-vision has it; from source: apt install gcc libjpeg62-turbo-dev, pip install ."
# The most that `resize_region` may shrink either side by.
LARGEST_SHRINK = 32

_pointer, _i64, _u32, _f64 = types.intp, types.int64, types.uint32, types.float64
_decode: Any = types.ExternalFunction(
    "fastpsl_turbo_decode",
    types.int32(
        _pointer, _pointer, types.uint64, _u32, _u32, _u32, types.int32, _pointer, _pointer, _pointer
    ),
)
_resize: Any = types.ExternalFunction(
    "fastpsl_area_resize",
    types.int32(_pointer, _i64, _f64, _f64, _f64, _f64, _pointer, _i64, _i64),
)


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, or None and why it is missing."""
    files = [Path(__file__).with_name("_turbo" + suffix) for suffix in EXTENSION_SUFFIXES]
    found = [file for file in files if file.exists()]
    if not found:
        return None, "fastpsl was installed without its C library"
    try:
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:  # such as a libjpeg that is no longer installed
        return None, f"fastpsl's C library does not load ({error})"
    pointer, u32, u64, f64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_double
    library.fastpsl_turbo_open.restype = pointer
    library.fastpsl_turbo_close.argtypes = [pointer]
    library.fastpsl_turbo_decode.argtypes = [*(pointer,) * 2, u64, *(u32,) * 3, ctypes.c_int, *(pointer,) * 3]
    library.fastpsl_turbo_encode.argtypes = [*(pointer,) * 2, *(u32,) * 2, ctypes.c_int, pointer, u64]
    library.fastpsl_turbo_encode.restype = u64
    library.fastpsl_area_resize.argtypes = [
        pointer,
        ctypes.c_int64,
        *(f64,) * 4,
        pointer,
        *(ctypes.c_int64,) * 2,
    ]
    return library, ""


def _register() -> None:
    library, _ = _load()
    # Without the library nothing calls them; abort() fills their places, so that compiled code can be linked.
    functions = (
        (library.fastpsl_turbo_decode, library.fastpsl_area_resize)
        if library
        else (ctypes.CDLL(None).abort,) * 2
    )
    for name, function in zip(("fastpsl_turbo_decode", "fastpsl_area_resize"), functions, strict=True):
        address = ctypes.cast(function, ctypes.c_void_p).value
        llvmlite.binding.add_symbol(name, address)


_register()


def library() -> ctypes.CDLL:
    """Return the library, loaded once per process.

    Raises:
        ValueError: If it was not built or does not load. The message has the remedy.
    """
    loaded, reason = _load()
    if loaded is None:
        raise ValueError(f"{reason}: {INSTALL}, or choose another decoder")
    return loaded


def why_missing() -> str:
    """Return why `library()` raises; empty if it does not."""
    return _load()[1]


class Handle:
    """The memory of one thread, freed with this object.

    Attributes:
        address: The handle's address.

    Raises:
        ValueError: If the library was not built, or was built for another version of libjpeg.
    """

    def __init__(self) -> None:
        self.address: int = 0
        self._library = library()
        self.address = self._library.fastpsl_turbo_open() or 0
        if not self.address:
            raise ValueError(f"fastpsl's C library was built for another libjpeg: {INSTALL}")

    def __del__(self) -> None:
        if self.address:
            self._library.fastpsl_turbo_close(self.address)


@njit(cache=True, nogil=True)
def decode_region(
    jpeg: np.ndarray,
    num_bytes: int,
    height: int,
    width: int,
    denominator: int,
    region: np.ndarray,
    pixels: np.ndarray,
    placed: np.ndarray,
    handle: int,
) -> int:
    """Decode the part of a JPEG that contains a region to RGB, in compiled code.

    The values equal those of a full decode with the accurate DCT and smooth upsampling bit for bit. Damage
    behind the region's last row is seen only where the JPEG lacks its end.

    Args:
        jpeg: The JPEG, uint8.
        num_bytes: The JPEG's size.
        height: The height in its header.
        width: The width in its header.
        denominator: The divisor of both sides, 1, 2, 4 or 8. Quotients are rounded up.
        region: The top, left, height and width in pixels of the divided image, int64, inside of it.
        pixels: The destination, uint8, with room for the whole divided image.
        placed: Filled in with what `pixels` holds, as in `region`. Its rows follow each other.
        handle: The address of a `Handle`, used by one thread at a time.

    Returns:
        0, or 1 if the JPEG is damaged in what was read or has another size.
    """
    status: int = _decode(
        handle,
        jpeg.ctypes.data,
        num_bytes,
        height,
        width,
        denominator,
        1,
        region.ctypes.data,
        pixels.ctypes.data,
        placed.ctypes.data,
    )
    return status


@njit(cache=True, nogil=True)
def resize_region(
    pixels: np.ndarray, columns: int, top: float, left: float, height: float, width: float, out: np.ndarray
) -> int:
    """Resize a box of an image as `area_resize` does, in 16-bit fixed point: within 0.52 of the exact mean.

    Args:
        pixels: The image, RGB, uint8.
        columns: The image's width.
        top: The box's top, in source pixels.
        left: The box's left.
        height: The box's height, at most LARGEST_SHRINK times that of `out`.
        width: The box's width, likewise.
        out: The result, contiguous uint8 [h, w, 3], written in place.

    Returns:
        0, or 1 if memory lacks.
    """
    status: int = _resize(
        pixels.ctypes.data, 3 * columns, top, left, height, width, out.ctypes.data, out.shape[0], out.shape[1]
    )
    return status
