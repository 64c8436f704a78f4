"""Reading and checking of samples' bytes before they are decoded, with the same checks for ffcv and DALI."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
from numba import njit

from fastpsl.pipelines.decoders import codes, libffcv
from fastpsl.pipelines.decoders.codes import (
    BAD_MODE,
    CHANGED,
    CORRUPT,
    GOOD,
    NOT_JPEG,
    NOT_READ,
    RAW_SIZE,
    SHORT_READ,
    WRONG_COMPONENTS,
    WRONG_SIZE,
)
from fastpsl.pipelines.decoders.libffcv import pread_into
from fastpsl.pipelines.decoders.memory import Arenas
from fastpsl.pipelines.image import jpeg, orientation
from fastpsl.pipelines.image.jpeg import HEADER_GOOD, SCANS_GOOD, SCANS_STANDARD_CODES
from fastpsl.pipelines.image.orientation import TURNED
from fastpsl.pipelines.interface import dataset
from fastpsl.pipelines.interface.dataset import (
    MODE_FILE,
    MODE_JPEG,
    MODE_RAW,
    SampleTable,
    is_of_one_file,
    open_file,
)

_jpeg_header = njit(nogil=True)(jpeg.jpeg_header)


@njit(nogil=True)
def _find_segment(buffer: np.ndarray, at: int, num_bytes: int) -> int:
    for i in range(at, num_bytes - 1):
        marker = buffer[i + 1]
        if buffer[i] == 0xFF and marker > 0x01 and marker != 0xFF and not 0xD0 <= marker <= 0xD8:
            return i
    return -1


_jpeg_scans = njit(nogil=True)(jpeg.scans_by(_find_segment))


@njit(nogil=True)  # cached only within the loops that call it, because their keys include this file's stamp
def read_checked(
    fd: int, offset: int, num_bytes: int, height: int, width: int, mode: int, out: np.ndarray
) -> tuple[int, bool]:
    """Read a sample into `out`, uint8 of at least `num_bytes`, and check its header and its scans.

    Sides are those of the stored image, before any rotation. Returned are a code (codes.py), and whether the
    sample is a JPEG that lacks the standard Huffman tables.
    """
    if mode == MODE_RAW and num_bytes != height * width * 3:
        return RAW_SIZE, False
    if mode != MODE_RAW and mode != MODE_JPEG:
        return BAD_MODE, False
    num_read = pread_into(fd, offset, num_bytes, out)
    if num_read != num_bytes:
        return SHORT_READ if num_read >= 0 else NOT_READ, False
    if mode == MODE_RAW:
        return GOOD, False
    status, header_height, header_width, components, _, _ = _jpeg_header(out, num_bytes)
    if status != HEADER_GOOD:
        return NOT_JPEG, False
    if header_height != height or header_width != width:
        return WRONG_SIZE, False
    if components != 1 and components != 3:
        return WRONG_COMPONENTS, False
    scans = _jpeg_scans(out, num_bytes)
    return (
        GOOD if scans == SCANS_GOOD or scans == SCANS_STANDARD_CODES else CORRUPT,
        scans == SCANS_STANDARD_CODES,
    )


@njit(nogil=True)
def _is_sound(jpeg: np.ndarray) -> bool:
    """Return whether a JPEG's markers are in place.

    Every segment up to the first scan must begin where the one before it ends, with one frame of 8 bits among
    them. An end-of-image marker must follow the last scan. (Within a scan's data 0xFF is followed by 0.)
    """
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


def _compiled(stamp: int) -> Callable[..., int]:
    @njit(cache=True, nogil=True)
    def read_part(
        fds: np.ndarray, offsets: np.ndarray, starts: np.ndarray, heights: np.ndarray, widths: np.ndarray,
        orientations: np.ndarray, modes: np.ndarray, memory: np.ndarray, codes: np.ndarray,
        is_sound: np.ndarray, first: int, stop: int,
    ) -> int:  # fmt: skip
        """Read samples `first` to `stop` of a batch and return how many good ones DALI must not decode."""
        num_odd = 0
        if stamp < 0:  # never true: it makes `stamp` a part of the cache's key
            return num_odd
        for i in range(first, stop):
            if codes[i] != GOOD:
                continue
            if modes[i] == MODE_FILE:
                num_odd += 1
                continue
            height, width = int(heights[i]), int(widths[i])
            if orientations[i] >= TURNED:
                height, width = width, height
            part = memory[starts[i] : starts[i + 1]]
            codes[i], lacks_codes = read_checked(fds[i], offsets[i], len(part), height, width, modes[i], part)
            if codes[i] == GOOD and modes[i] == MODE_JPEG and (lacks_codes or not _is_sound(part)):
                is_sound[i] = False
                num_odd += 1
        return num_odd

    return read_part


def stamp(*modules: ModuleType) -> int:
    """Return a checksum of the modules' files, for the cache keys of compiled functions that call into them.

    numba's own key has the date of the function's file alone.
    """
    return zlib.crc32(b"".join(Path(str(module.__file__)).read_bytes() for module in modules))


_read_part = _compiled(stamp(codes, orientation, jpeg, libffcv, dataset))


class Encoded:
    """The stored bytes of a batch, which any number of threads read part by part.

    Files that are not JPEGs (MODE_FILE) are not read.

    Attributes:
        codes: int8 [n].
        is_sound: bool [n]. False for a JPEG that may upset a decoder: its markers are out of place, it has
            two frames, no end-of-image marker, or no Huffman tables.
        images: Images that are already decoded, uint8 [H, W, 3], by position.
        arena: The memory of the bytes.
    """

    def __init__(self, rows: SampleTable, arenas: Arenas) -> None:
        num = len(rows.indices)
        self.codes, self.is_sound = np.zeros(num, np.int8), np.ones(num, np.bool_)
        self.images: dict[int, np.ndarray] = {}
        self._rows, self._has_paths = rows, bool((rows.path != "").any())
        self._fds = rows.fd.copy() if self._has_paths else rows.fd
        self._starts = np.zeros(num + 1, np.int64)
        np.cumsum(np.where(rows.mode == MODE_FILE, 0, rows.num_bytes), out=self._starts[1:])
        self.arena = arenas.take(int(self._starts[-1]))

    def read(self, part: slice) -> int:
        """Read and check a slice of the samples."""
        rows, open_fds = self._rows, []
        try:
            if self._has_paths:
                open_fds = self._open(part)
            num_odd = _read_part(
                self._fds, rows.offset, self._starts, rows.height, rows.width, rows.orientation, rows.mode,
                self.arena.memory, self.codes, self.is_sound, part.start, part.stop,
            )  # fmt: skip
            of_part = self.codes[part]
            of_part[(of_part == NOT_READ) & (rows.path[part] != "")] = CHANGED  # bad as any file of its own
            return num_odd
        finally:
            for fd in open_fds:
                os.close(fd)

    def _open(self, part: slice) -> list[int]:
        open_fds = []
        for i in range(part.start, part.stop):
            if self._rows.path[i] and self._rows.mode[i] != MODE_FILE:
                fd = self._fds[i] = _open(self._rows, i)
                if fd >= 0:
                    open_fds.append(fd)
                else:
                    self.codes[i] = CHANGED
        return open_fds

    def are_pinned(self, which: np.ndarray) -> bool:
        """Return whether all of `samples(which)` lie in pinned memory."""
        return self.arena.is_pinned and self.images.keys().isdisjoint(which.tolist())

    def samples(self, which: np.ndarray) -> list[np.ndarray]:
        """Return, without a copy, a JPEG's bytes or an image, uint8 [H, W, 3], for each of some positions."""
        # Arrays, because DALI's inputs from slices of a memoryview cost three times as much.
        memory, starts, rows = self.arena.memory, self._starts.tolist(), self._rows
        samples = [memory[starts[i] : starts[i + 1]] for i in which.tolist()]
        if self.images or rows.mode[which].any():
            for place, i in enumerate(which.tolist()):
                if i in self.images:
                    samples[place] = self.images[i]
                elif rows.mode[i] == MODE_RAW:
                    samples[place] = samples[place].reshape(rows.height[i], rows.width[i], 3)
        return samples


def _open(rows: SampleTable, i: int) -> int:
    """Open a file, or return -1 if it is gone or its size has changed."""
    try:
        fd = open_file(rows.path[i])
    except OSError as error:
        if not is_of_one_file(error):
            raise
        return -1
    if os.fstat(fd).st_size == rows.num_bytes[i]:
        return fd
    os.close(fd)
    return -1
