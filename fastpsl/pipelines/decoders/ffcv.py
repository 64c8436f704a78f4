"""The ffcv decoder: libffcv decodes whole images. It is the reference for files as stock FFCV reads them.

Its loop, compiled by numba, reads, checks, decodes and crops a chunk of samples. libffcv trusts its caller,
so headers, sizes and boxes are checked here first.
"""

import threading
from collections.abc import Callable

import numpy as np
from numba import njit
from typing_extensions import override

from fastpsl.kernels import isotropic, isotropic_loops
from fastpsl.kernels.isotropic import DIAGONAL
from fastpsl.kernels.isotropic_loops import isotropic_resize
from fastpsl.pipelines.decoders import codes, libffcv, read_samples
from fastpsl.pipelines.decoders.codes import AREA, BAD_BOX, CORRUPT, GOOD
from fastpsl.pipelines.decoders.decoder import Decoder, Request
from fastpsl.pipelines.decoders.libffcv import decode_into
from fastpsl.pipelines.decoders.read_samples import read_checked, stamp
from fastpsl.pipelines.image import area, jpeg
from fastpsl.pipelines.image.area import area_resize
from fastpsl.pipelines.image.jpeg import standard_codes
from fastpsl.pipelines.interface import dataset
from fastpsl.pipelines.interface.dataset import MODE_RAW

# A JPEG is decoded at 1/d (2, 4, 8) where every box is at least 1.5 d times as large as its crop. The mean
# difference to a full decode in 1/255 on 40 photos, for d = 2 / 4 / 8: with 1.0 d 2.2 / 2.4 / 3.1, with 1.5 d
# 1.5 / 1.6 / 2.0, with 2 d 1.1 / 1.1 / 1.4.
SCALE_MARGIN = 1.5
# In the place of a JPEG's first two bytes, where it lacks the standard Huffman tables: libffcv would take
# those of the image before.
_CODES = standard_codes()
_ROOM = len(_CODES) - 2  # kept free before each sample


@njit(nogil=True)  # cached only within the loop below, because its key includes the stamp of all files called
def _denominator(boxes: np.ndarray, sizes: np.ndarray, i: int) -> int:
    """Return by what factor (1, 2, 4 or 8) sample i may be decoded smaller."""
    denominator = 8
    for k in range(boxes.shape[0]):
        if boxes[k, i, 4] != AREA:  # it must not show the image's axes as libjpeg's scaling does
            return 1
        shorter = min(boxes[k, i, 2], boxes[k, i, 3])
        while denominator > 1 and shorter < SCALE_MARGIN * denominator * sizes[k]:
            denominator //= 2
    return denominator


@njit(nogil=True)
def _decode_one(
    fd: int, offset: int, num_bytes: int, height: int, width: int, mode: int, boxes: np.ndarray,
    sizes: np.ndarray, i: int, encoded: np.ndarray, pixels: np.ndarray, handle: int,
) -> tuple[int, int]:  # fmt: skip
    """Decode a sample into `pixels`, and return its code and denominator."""
    sample = pixels if mode == MODE_RAW else encoded[_ROOM:]
    code, lacks_codes = read_checked(fd, offset, num_bytes, height, width, mode, sample)
    if code != GOOD or mode == MODE_RAW:
        return code, 1
    if lacks_codes:
        encoded[: len(_CODES)] = _CODES
        sample, num_bytes = encoded, num_bytes + _ROOM
    denominator = _denominator(boxes, sizes, i)
    status = decode_into(sample, num_bytes, height, width, pixels, denominator, handle)
    return GOOD if status == 0 else CORRUPT, denominator


@njit(nogil=True)
def _crop(
    pixels: np.ndarray, rows: int, columns: int, box: np.ndarray, denominator: int, out: np.ndarray
) -> None:
    """Crop a box of an image, which was decoded at 1 / denominator."""
    if box[4] != AREA:
        isotropic_resize(
            pixels, rows, columns, int(box[0]), int(box[1]), int(box[2]), box[4] == DIAGONAL, out
        )
        return
    top, left = box[0] / denominator, box[1] / denominator
    area_resize(pixels, rows, columns, top, left, box[2] / denominator, box[3] / denominator, out)


def _compiled(stamp: int) -> Callable[..., None]:
    """Return the loop, which is compiled when it is first called.

    `stamp` is a number for the code of other files that it contains: a part of the cache's key.
    """

    @njit(cache=True, nogil=True)
    def decode_chunk(
        fds: np.ndarray, offsets: np.ndarray, num_bytes: np.ndarray, heights: np.ndarray, widths: np.ndarray,
        modes: np.ndarray, outside: np.ndarray, boxes: np.ndarray, sizes: np.ndarray,
        outs: tuple[np.ndarray, ...], encoded: np.ndarray, pixels: np.ndarray, codes: np.ndarray, handle: int,
    ) -> None:  # fmt: skip
        if stamp < 0:  # never true: it makes `stamp` a part of the cache's key
            return
        # outs is a tuple of arrays, so numba compiles and caches this short loop for each number of views.
        for i in range(len(codes)):
            if outside[i]:
                codes[i] = BAD_BOX
                continue
            codes[i], denominator = _decode_one(
                fds[i], offsets[i], num_bytes[i], int(heights[i]), int(widths[i]), modes[i], boxes, sizes, i,
                encoded, pixels, handle,
            )  # fmt: skip
            if codes[i] == GOOD:
                rows, columns = -(-int(heights[i]) // denominator), -(-int(widths[i]) // denominator)
                for k in range(len(outs)):
                    _crop(pixels, rows, columns, boxes[k, i], denominator, outs[k][i])

    return decode_chunk


_decode_chunk = _compiled(
    stamp(area, codes, read_samples, isotropic, isotropic_loops, jpeg, libffcv, dataset)
)


class FfcvDecoder(Decoder):
    """A decoder on the CPU for dataset files, by libffcv."""

    name = "ffcv"

    def __init__(self) -> None:
        libffcv.library()
        self._local = threading.local()  # each thread has a handle and scratch memory of its own

    @override
    def decode_part(self, request: Request, part: slice) -> None:
        rows, outs = request.rows.part(part), [out[part] for out in request.outs]
        boxes = np.ascontiguousarray(request.boxes[:, part])
        sizes = np.array([out.shape[1] for out in outs], np.int64)
        heights, widths = rows.height.astype(np.int64), rows.width.astype(np.int64)
        encoded = self._memory("encoded", _ROOM + int(rows.num_bytes.max()))
        pixels = self._memory("pixels", 3 * int((heights * widths).max()))
        _decode_chunk(
            rows.fd, rows.offset, rows.num_bytes, heights, widths, rows.mode, request.outside(part), boxes,
            sizes, tuple(outs), encoded, pixels, request.codes[part], self._handle(),
        )  # fmt: skip

    def _handle(self) -> int:
        """Return the address of this thread's handle, which is freed with the thread."""
        if not hasattr(self._local, "handle"):
            self._local.handle = libffcv.Handle()
        address: int = self._local.handle.address
        return address

    def _memory(self, use: str, num_bytes: int) -> np.ndarray:
        """Return this thread's scratch memory for a use; it grows to the largest sample."""
        memory: np.ndarray | None = getattr(self._local, use, None)
        if memory is None or len(memory) < num_bytes:
            memory = np.empty(num_bytes, np.uint8)
            setattr(self._local, use, memory)
        return memory
