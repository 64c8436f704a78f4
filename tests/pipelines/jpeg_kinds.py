"""JPEGs of all kinds that libjpeg writes (sampling, colours, codes, scans), and its whole decode of them."""

import ctypes
import functools
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

SOURCE = Path(__file__).with_suffix(".c")
# Kept between runs, and carried to machines that have libjpeg but not its headers.
LIBRARY = Path(__file__).parents[2] / "build" / "libjpeg_kinds.so"


@functools.cache
def library() -> ctypes.CDLL:
    """Return the library, compiled if it is older than its source; skip the test if that fails."""
    if not LIBRARY.exists() or LIBRARY.stat().st_mtime < SOURCE.stat().st_mtime:
        new = LIBRARY.with_name(f"{LIBRARY.name}.{os.getpid()}")
        LIBRARY.parent.mkdir(exist_ok=True)
        compiler = os.environ.get("CC", "cc")
        command = [compiler, "-O2", "-shared", "-fPIC", str(SOURCE), "-o", str(new), "-ljpeg"]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"needs a C compiler and libjpeg's headers ({error})")
        new.replace(LIBRARY)
    loaded = ctypes.CDLL(str(LIBRARY))
    loaded.jpeg_kind.restype = ctypes.c_uint64
    loaded.jpeg_kind.argtypes = [
        ctypes.c_void_p, *(ctypes.c_uint32,) * 2, *(ctypes.c_int,) * 2, ctypes.c_void_p,
        *(ctypes.c_int,) * 7, ctypes.c_void_p, ctypes.c_uint64,
    ]  # fmt: skip
    loaded.jpeg_whole.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p]
    loaded.jpeg_coefficients.restype = ctypes.c_uint64
    loaded.jpeg_coefficients.argtypes = [ctypes.c_char_p, ctypes.c_uint64, *(ctypes.c_void_p,) * 2]
    return loaded


@dataclass(frozen=True)
class Kind:
    """A way in which a JPEG is stored: `sampling` has each component's factors, across and down."""

    sampling: tuple[tuple[int, int], ...]
    is_rgb: bool = False
    quality: int = 85
    is_progressive: bool = False
    num_planes: int = 0  # the number of scans of each coefficient of a grey image
    is_arithmetic: bool = False
    restart_rows: int = 0
    is_optimised: bool = False
    is_interleaved: bool = True

    def encode(self, image: np.ndarray) -> bytes:
        """Encode uint8 [H, W, 3]; of a grey kind, its green."""
        num = len(self.sampling)
        pixels = np.ascontiguousarray(image[..., 1:2] if num == 1 else image)
        sampling = np.array(self.sampling, np.int32)
        out = np.empty(20_000 + 8 * pixels.size, np.uint8)
        num_bytes: int = library().jpeg_kind(
            pixels.ctypes.data, *pixels.shape[:2], num, self.is_rgb, sampling.ctypes.data, self.quality,
            self.is_progressive, self.num_planes, self.is_arithmetic, self.restart_rows, self.is_optimised,
            self.is_interleaved, out.ctypes.data, out.size,
        )  # fmt: skip
        assert num_bytes, self
        return out[:num_bytes].tobytes()


def whole(data: bytes, height: int, width: int, denominator: int = 1) -> np.ndarray:
    """Decode a JPEG of height x width px by libjpeg: uint8 [h, w, 3], its sides / denominator rounded up."""
    out = np.empty((-(-height // denominator), -(-width // denominator), 3), np.uint8)
    assert library().jpeg_whole(data, len(data), denominator, out.ctypes.data) == 0
    return out


def coefficients(data: bytes, num_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a JPEG's tables, uint16 [3, 64], and its coefficients, int16 [blocks, 64], by libjpeg."""
    tables, out = np.zeros((3, 64), np.uint16), np.empty((3 * (num_pixels + 4096), 64), np.int16)
    num = library().jpeg_coefficients(data, len(data), tables.ctypes.data, out.ctypes.data)
    assert num
    return tables, out[:num]


def _luma(across: int, down: int) -> tuple[tuple[int, int], ...]:
    return (across, down), (1, 1), (1, 1)


KINDS = {
    "4:4:4": Kind(_luma(1, 1)), "4:2:2": Kind(_luma(2, 1)), "4:2:0": Kind(_luma(2, 2)),
    "4:1:1": Kind(_luma(4, 1)), "4:4:0": Kind(_luma(1, 2)), "3x1": Kind(_luma(3, 1)),
    "1x3": Kind(_luma(1, 3)), "4x2": Kind(_luma(4, 2)), "1x4": Kind(_luma(1, 4)),
    "colours 2x1 of 2x2": Kind(((2, 2), (2, 1), (2, 1))), "one colour whole": Kind(((2, 2), (2, 2), (1, 1))),
    "luma below a colour": Kind(((1, 1), (2, 2), (1, 1))), "RGB": Kind(_luma(1, 1), is_rgb=True),
    "4:2:0 progressive": Kind(_luma(2, 2), is_progressive=True),
    "4:4:4 progressive": Kind(_luma(1, 1), is_progressive=True),
    "4:2:0 arithmetic": Kind(_luma(2, 2), is_arithmetic=True),
    "4:2:0 arithmetic progressive": Kind(_luma(2, 2), is_arithmetic=True, is_progressive=True),
    "4:2:0 restarts": Kind(_luma(2, 2), restart_rows=1),
    "4:2:0 restarts each 3 rows": Kind(_luma(2, 2), restart_rows=3),
    "4:4:4 restarts each 2 rows": Kind(_luma(1, 1), restart_rows=2),
    "4:2:0 optimised": Kind(_luma(2, 2), is_optimised=True),
    "4:2:0 a scan a component": Kind(_luma(2, 2), is_interleaved=False),
    "4:4:4 a scan a component": Kind(_luma(1, 1), is_interleaved=False),
    "4:2:0 quality 100": Kind(_luma(2, 2), quality=100), "4:2:0 quality 1": Kind(_luma(2, 2), quality=1),
    "grey": Kind(((1, 1),)), "grey 2x2": Kind(((2, 2),)), "grey 2x1": Kind(((2, 1),)),
    "grey 1x2": Kind(((1, 2),)), "grey 3x1": Kind(((3, 1),)), "grey 4x4": Kind(((4, 4),)),
    "grey progressive": Kind(((1, 1),), is_progressive=True),
    "grey of 128 scans": Kind(((1, 1),), num_planes=2),
    "grey 2x2 progressive": Kind(((2, 2),), is_progressive=True),
}  # fmt: skip
