"""Bindings of our C library, by ctypes: every call releases the GIL."""

import ctypes
import functools
from pathlib import Path

from fastpsl.console.installed import reinstall
from fastpsl.files.atomic import Uncopyable
from fastpsl.files.system_errors import raise_of_the_system
from fastpsl.kernels.c_library import open_library

_ROOT = Path(__file__).parents[3]


def remedy() -> str:
    """Return how to install our C library, which a wheel has and else is compiled."""
    return f"apt install gcc libjpeg-dev, then {reinstall()}"


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, or None and why it is missing."""
    try:
        library = open_library("fastpsl.pipelines.decoders._turbo")
    except FileNotFoundError:
        if (_ROOT / "setup.py").exists():  # Python begins with the folder in which it is started
            return None, (
                f"Python took fastpsl from the source folder {_ROOT}, which has no C library: start it "
                "elsewhere, or pip install -e . there"
            )
        return None, "fastpsl was installed without its C library"
    except OSError as error:  # such as a libjpeg that is no longer installed
        raise_of_the_system("fastpsl's C library", error)
        return None, f"fastpsl's C library does not load ({error})"
    pointer, i64, u32, u64 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint32, ctypes.c_uint64
    library.fastpsl_turbo_open.restype = pointer
    library.fastpsl_turbo_close.argtypes = [pointer]
    library.fastpsl_turbo_decode.argtypes = [
        *(pointer,) * 2, u64, *(u32,) * 3, *(ctypes.c_int,) * 2, *(pointer,) * 3,
    ]  # fmt: skip
    library.fastpsl_turbo_encode.argtypes = [*(pointer,) * 2, *(u32,) * 2, ctypes.c_int, pointer, u64]
    library.fastpsl_turbo_encode.restype = u64
    library.fastpsl_coefficients_pack.argtypes = [*(pointer,) * 2, u64, ctypes.POINTER(pointer)]
    library.fastpsl_coefficients_pack.restype = u64
    library.fastpsl_turbo_shrink.argtypes = [*(pointer,) * 2, u64, *(u32,) * 3, ctypes.c_int, pointer, u64]
    library.fastpsl_turbo_shrink.restype = u64
    library.fastpsl_decode_samples.argtypes = [pointer, pointer, i64, i64, pointer]
    library.fastpsl_decode_samples.restype = None
    library.fastpsl_crop_image.argtypes = [pointer, i64, pointer]
    library.fastpsl_slots_open.argtypes = [ctypes.c_uint32]
    library.fastpsl_slots_open.restype = pointer
    for name in ("close", "take", "give"):
        getattr(library, f"fastpsl_slots_{name}").argtypes = [pointer]
    library.fastpsl_area_resize.argtypes = [pointer, i64, *(ctypes.c_double,) * 4, pointer, *(i64,) * 2]
    library.fastpsl_isotropic_resize.argtypes = [pointer, *(i64,) * 5, ctypes.c_int, pointer, i64]
    return library, ""


class Batch(ctypes.Structure):
    """The struct of samples.c: arrays of a batch, by their addresses. The last three may be missing."""

    _fields_ = [("num", ctypes.c_int64), ("num_views", ctypes.c_int64)] + [
        (name, ctypes.c_void_p)
        for name in (
            "files", "offsets", "num_bytes", "heights", "widths", "modes", "orientations", "boxes", "sizes",
            "outs", "codes", "paths", "slots", "windows", "window_offsets", "arena",
        )
    ]  # fmt: skip


def library() -> ctypes.CDLL:
    """Return the library, loaded once per process."""
    loaded, reason = _load()
    if loaded is None:
        raise ValueError(f"{reason}: {remedy()}, or choose another decoder")
    return loaded


def why_missing() -> str:
    """Return why `library()` raises; empty if it does not."""
    return _load()[1]


class Handle(Uncopyable):
    """The memory of one thread, at an address, freed with this object."""

    def __init__(self) -> None:
        self.address: int = 0
        self._library = library()
        self.address = self._library.fastpsl_turbo_open() or 0
        if not self.address:
            raise ValueError(f"fastpsl's C library was built for another libjpeg: {remedy()}")

    def __del__(self) -> None:
        if self.address:
            self._library.fastpsl_turbo_close(self.address)


class Slots(Uncopyable):
    """The right of `num` threads to decode at once: a semaphore at an address, freed with this object.

    As a context it waits for one of these rights, and gives it back.
    """

    def __init__(self, num: int) -> None:
        self._library = library()
        self.address: int = self._library.fastpsl_slots_open(num) or 0
        assert self.address, num

    def __enter__(self) -> None:
        self._library.fastpsl_slots_take(self.address)

    def __exit__(self, *exception: object) -> None:
        self._library.fastpsl_slots_give(self.address)

    def __del__(self) -> None:
        if self.address:
            self._library.fastpsl_slots_close(self.address)
