"""Bindings of libffcv, ffcv's C library, which calls libjpeg-turbo's decoder.

The package ffcv itself is never imported, because that takes 4.2 s and 860 MB, and sets torch's and numba's
thread counts to 1.

`decode_into` and `pread_into` are for functions compiled with `njit(cache=True, nogil=True)`. They name
external symbols, which are registered in each process, so that their callers can be cached. A ctypes function
object instead would be a "dynamic global", and every process would compile again.

The C code trusts its caller. Check the header (jpeg.py) against the table before decoding a buffer.
"""

import ctypes
import functools
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
from numba import njit, types

from fastpsl.console.installed import install
from fastpsl.files.atomic import Uncopyable
from fastpsl.files.system_errors import raise_of_the_system


def remedy() -> str:
    """Return how to install ffcv."""
    return f"{install('ffcv')} (needs g++, libturbojpeg0-dev, libopencv-dev)"


# turbojpeg.h: the pixel format, and flags of decoding.
_RGB, _NO_REALLOC, _FAST_DCT = 0, 1024, 2048
_pointer, _u32 = types.intp, types.uint32
_tj_decode: Any = types.ExternalFunction(
    "fastpsl_tj_decode", types.int32(_pointer, types.uint64, _u32, _u32, _pointer, *(_u32,) * 8)
)
_tj_decompress: Any = types.ExternalFunction(
    "fastpsl_tj_decompress", types.int32(_pointer, _pointer, types.uint64, _pointer, *(types.int32,) * 5)
)
_pread: Any = types.ExternalFunction(
    "fastpsl_pread", types.intp(types.int32, _pointer, types.uintp, types.int64)
)


def _address(function: object) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
    assert address is not None
    return address


# Registered at import, because libc needs no library() and DALI's path reads by it without libffcv.
llvmlite.binding.add_symbol("fastpsl_pread", _address(ctypes.CDLL(None).pread))
# abort() fills the places of libffcv's, so that code of the turbo decoder can be linked without libffcv.
for _name in ("fastpsl_tj_decode", "fastpsl_tj_decompress"):
    llvmlite.binding.add_symbol(_name, _address(ctypes.CDLL(None).abort))


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, or None and why it is missing."""
    package = PathFinder.find_spec("ffcv")  # searches sys.path without importing anything
    folders = list(package.submodule_search_locations or []) if package else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("_libffcv*.so"))]
    if not files:
        return None, "ffcv is not installed"
    try:
        library = ctypes.CDLL(str(files[0]))
    except OSError as error:  # such as a libturbojpeg or OpenCV that is no longer installed
        raise_of_the_system(files[0], error)
        return None, f"ffcv's library does not load ({error})"
    u32, flag = ctypes.c_uint32, ctypes.c_bool
    pointer = ctypes.c_void_p
    library.imdecode.argtypes = [pointer, ctypes.c_uint64, u32, u32, pointer, *(u32,) * 6, flag, flag]
    library.imdecode.restype = ctypes.c_int
    llvmlite.binding.add_symbol("fastpsl_tj_decode", _address(library.imdecode))
    # imdecode only fills the symbol's place: without handles it is never called as fastpsl_tj_decompress.
    decompress = library.tjDecompress2 if _reach_turbojpeg(library) else library.imdecode
    llvmlite.binding.add_symbol("fastpsl_tj_decompress", _address(decompress))
    return library, ""


@functools.cache
def _reach_turbojpeg(library: ctypes.CDLL) -> bool:
    """Declare the types of libturbojpeg's functions, and return whether libffcv gives access to them."""
    try:
        library.tjInitDecompress.restype = ctypes.c_void_p
        library.tjDestroy.argtypes = [ctypes.c_void_p]
        library.tjDecompress2.argtypes = [
            *(ctypes.c_void_p,) * 2, ctypes.c_ulong, ctypes.c_void_p, *(ctypes.c_int,) * 5,
        ]  # fmt: skip
    except AttributeError:
        return False
    return True


def library() -> ctypes.CDLL:
    """Return libffcv, loaded once per process. Call it before running compiled code that decodes."""
    loaded, reason = _load()
    if loaded is None:
        raise ValueError(f"{reason}: {remedy()}, or choose another decoder")
    return loaded


def why_missing() -> str:
    """Return why `library()` raises; empty if it does not."""
    return _load()[1]


@njit(cache=True, nogil=True)
def decode_into(
    jpeg: np.ndarray,
    num_bytes: int,
    height: int,
    width: int,
    out: np.ndarray,
    denominator: int,
    handle: int,
) -> int:
    """Decode a JPEG, uint8, to RGB at 1 / `denominator`, which is 1, 2, 4 or 8, in compiled code.

    `out` is contiguous uint8 of at least h * w * 3, where h is height / denominator, rounded up. One thread
    at a time uses the `Handle` at the address `handle`. Returned is 0, or -1 after a libjpeg error or
    warning; `out` then holds what was decoded.
    """
    source, pixels = jpeg.ctypes.data, out.ctypes.data
    if handle != 0:  # the call that imdecode makes, but its own handles outlive their threads: 6 kB each
        columns = (width + denominator - 1) // denominator
        rows = (height + denominator - 1) // denominator
        flags = _FAST_DCT | _NO_REALLOC
        return _tj_decompress(handle, source, num_bytes, pixels, columns, 0, rows, _RGB, flags)
    return _tj_decode(source, num_bytes, height, width, pixels, height, width, 0, 0, 1, denominator, 0, 0)


@njit(cache=True, nogil=True)
def pread_into(file: int, offset: int, num_bytes: int, out: np.ndarray) -> int:
    """Read from an open file, in compiled code; return the bytes read, fewer at its end, or -1 on error."""
    num_read = 0
    while num_read < num_bytes:
        count = _pread(file, out.ctypes.data + num_read, num_bytes - num_read, offset + num_read)
        if count < 0:
            return -1
        if count == 0:
            break
        num_read += count
    return num_read


class Handle(Uncopyable):
    """A handle of libturbojpeg's decoder for one thread, freed with this object."""

    def __init__(self) -> None:
        self.address: int = 0  # if libffcv gives no access to libturbojpeg
        self._library = library()
        if _reach_turbojpeg(self._library):
            self.address = self._library.tjInitDecompress() or 0

    def __del__(self) -> None:
        if self.address:
            self._library.tjDestroy(self.address)
