"""Samples' bytes, read and checked before a decoder sees them: the same checks, in the same order, for every decoder."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
from numba import njit

from fastpsl.pipelines import libffcv, rows
from fastpsl.pipelines.decoders import codes
from fastpsl.pipelines.decoders.codes import (
    BAD_MODE,
    CHANGED,
    GOOD,
    NOT_JPEG,
    RAW_SIZE,
    SHORT_READ,
    WRONG_COMPONENTS,
    WRONG_SIZE,
)
from fastpsl.pipelines.image_file import TURNED
from fastpsl.pipelines.libffcv import HEADER_GOOD, jpeg_header, pread_into
from fastpsl.pipelines.rows import MODE_JPEG, MODE_RAW, Rows


@njit(nogil=True)  # cached as a part of the loops that call it, whose keys know of this file
def read_checked(
    fd: int, offset: int, num_bytes: int, height: int, width: int, mode: int, out: np.ndarray
) -> int:
    """Read a sample into `out` (uint8, at least num_bytes); height and width are those stored. A code."""
    if mode == MODE_RAW:
        if num_bytes != height * width * 3:
            return RAW_SIZE
        return GOOD if pread_into(fd, offset, num_bytes, out) == num_bytes else SHORT_READ
    if mode != MODE_JPEG:
        return BAD_MODE
    if pread_into(fd, offset, num_bytes, out) != num_bytes:
        return SHORT_READ
    status, header_height, header_width, components, _, _ = jpeg_header(out, num_bytes)
    if status != HEADER_GOOD:
        return NOT_JPEG
    if header_height != height or header_width != width:
        return WRONG_SIZE
    if components != 1 and components != 3:
        return WRONG_COMPONENTS
    return GOOD


@njit(nogil=True)
def _is_sound(jpeg: np.ndarray) -> bool:
    """Whether every marker up to the first scan stands where the one before it says, with one frame of 8 bits among them,
    and an end-of-image marker behind the last scan (in whose data 0xFF is followed by 0)."""
    at, num_frames = 2, 0
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF:
        marker = jpeg[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        length = int(jpeg[at + 2]) << 8 | int(jpeg[at + 3])
        if marker < 0xC0 or 0xD0 <= marker <= 0xD9 or at + 2 + length > len(jpeg):
            return False
        if length < (8 if marker == 0xE1 else 2):
            return False
        if marker == 0xDA:
            return num_frames == 1 and _has_end(jpeg[at + 2 :])
        if 0xC0 <= marker <= 0xCF and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
            num_frames += 1
            if jpeg[at + 4] != 8:
                return False
        at += 2 + int(length)
    return False


@njit(nogil=True)
def _has_end(jpeg: np.ndarray) -> bool:
    for i in range(len(jpeg) - 2, -1, -1):
        if jpeg[i] == 0xFF and jpeg[i + 1] == 0xD9:
            return True
        if jpeg[i] == 0xFF and jpeg[i + 1] == 0xDA:
            return False
    return False


def _compiled(stamp: int) -> Callable[..., None]:
    @njit(cache=True, nogil=True)
    def read_all(
        fds: np.ndarray,
        offsets: np.ndarray,
        starts: np.ndarray,
        heights: np.ndarray,
        widths: np.ndarray,
        modes: np.ndarray,
        out: np.ndarray,
        codes: np.ndarray,
        is_sound: np.ndarray,
    ) -> None:
        if stamp < 0:  # never: it is named here to be part of the cache's key
            return
        for i in range(len(codes)):
            if codes[i] != GOOD:
                continue
            part = out[starts[i] : starts[i + 1]]
            codes[i] = read_checked(
                fds[i], offsets[i], len(part), int(heights[i]), int(widths[i]), modes[i], part
            )
            is_sound[i] = codes[i] != GOOD or modes[i] != MODE_JPEG or _is_sound(part)

    return read_all


def stamp(*modules: ModuleType) -> int:
    """Changes when one of the files does: numba caches a function by its own file's date alone, whatever it calls."""
    return zlib.crc32(b"".join(Path(str(module.__file__)).read_bytes() for module in modules))


_read_all = _compiled(stamp(codes, libffcv, rows))


def read_samples(rows: Rows) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """JPEGs and raw pictures as they are stored: (codes [n], uint8 [num_bytes] or [H, W, 3] each, is_sound bool [n]).

    `is_sound`: False for a JPEG that a decoder might take amiss: markers out of place, two frames, no end-of-image marker.
    What is returned of a sample whose code is not 0 is undefined. One allocation; releases the GIL.
    """
    num = len(rows.indices)
    status, is_sound = np.zeros(num, np.int8), np.ones(num, np.bool_)
    fds, opened = rows.fd.copy(), []
    try:
        for i in np.flatnonzero(rows.path != "").tolist():
            fds[i] = _open(rows, i)
            if fds[i] >= 0:
                opened.append(int(fds[i]))
            else:
                status[i] = CHANGED
        starts = np.zeros(num + 1, np.int64)
        np.cumsum(np.where(status == GOOD, rows.num_bytes, 0), out=starts[1:])
        out = np.empty(starts[-1], np.uint8)
        is_turned = rows.orientation >= TURNED
        heights = np.where(is_turned, rows.width, rows.height)
        widths = np.where(is_turned, rows.height, rows.width)
        _read_all(fds, rows.offset, starts, heights, widths, rows.mode, out, status, is_sound)
    finally:
        for fd in opened:
            os.close(fd)
    samples = [out[starts[i] : starts[i + 1]] for i in range(num)]
    for i in np.flatnonzero((rows.mode == MODE_RAW) & (status == GOOD)).tolist():
        samples[i] = samples[i].reshape(rows.height[i], rows.width[i], 3)
    return status, samples, is_sound


def _open(rows: Rows, i: int) -> int:
    """An open file, or -1 where it is gone or has another size than it had."""
    try:
        fd = os.open(rows.path[i], os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    if os.fstat(fd).st_size == rows.num_bytes[i]:
        return fd
    os.close(fd)
    return -1
