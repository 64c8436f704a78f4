"""The ffcv decoder on the CPU: one compiled loop reads, checks, decodes and crops a chunk of samples.

The loop holds no lock and calls no threading layer. The loader's threads run it in parallel, each with its
own scratch memory. libffcv trusts its caller, so headers, sizes and boxes are checked here first.
"""

import threading
from collections.abc import Callable

import numpy as np
from numba import njit
from typing_extensions import override

from fastpsl.kernels import isotropic
from fastpsl.kernels.isotropic import DIAGONAL, fits_isotropic, isotropic_resize
from fastpsl.pipelines.data import dataset
from fastpsl.pipelines.data.dataset import MODE_RAW, SampleTable
from fastpsl.pipelines.decoders import area, codes, encoded, libffcv
from fastpsl.pipelines.decoders.area import area_resize
from fastpsl.pipelines.decoders.codes import AREA, BAD_BOX, CORRUPT, GOOD, REASONS, check_request
from fastpsl.pipelines.decoders.decoder import Decoder
from fastpsl.pipelines.decoders.encoded import read_checked, stamp
from fastpsl.pipelines.decoders.libffcv import Handle, decode_into, library

# A JPEG is decoded at 1/d (2, 4, 8) where every box is at least 1.5 d times as large as its crop. The mean
# difference to a full decode in 1/255 on 40 photos, for d = 2 / 4 / 8: with 1.0 d 2.2 / 2.4 / 3.1, with 1.5 d
# 1.5 / 1.6 / 2.0, with 2 d 1.1 / 1.1 / 1.4.
SCALE_MARGIN = 1.5


@njit(cache=True, nogil=True)
def _denominator(boxes: np.ndarray, sizes: np.ndarray, i: int) -> int:
    """Return by what factor (1, 2, 4 or 8) sample i may be decoded smaller."""
    denominator = 8
    for k in range(boxes.shape[0]):
        shorter = min(boxes[k, i, 2], boxes[k, i, 3])
        while denominator > 1 and shorter < SCALE_MARGIN * denominator * sizes[k]:
            denominator //= 2
    return denominator


@njit(nogil=True)  # cached only within the loop below, because its key includes the stamp of all files called
def _decode_one(
    fd: int,
    offset: int,
    num_bytes: int,
    height: int,
    width: int,
    mode: int,
    boxes: np.ndarray,
    sizes: np.ndarray,
    i: int,
    encoded: np.ndarray,
    pixels: np.ndarray,
    handle: int,
) -> tuple[int, int]:
    """Decode a sample into `pixels` and return its code and denominator.

    The image has ceil(height / denominator) x ceil(width / denominator) x 3 values.
    """
    all_area = True
    for k in range(boxes.shape[0]):
        top, left, box_height, box_width = boxes[k, i, 0], boxes[k, i, 1], boxes[k, i, 2], boxes[k, i, 3]
        if top < 0 or left < 0 or box_height < 1 or box_width < 1:
            return BAD_BOX, 1
        if box_height > height - top or box_width > width - left:
            return BAD_BOX, 1
        if boxes[k, i, 4] != AREA:
            all_area = False
            if not fits_isotropic(height, width, top, left, box_height, box_width, sizes[k]):
                return BAD_BOX, 1
    code = read_checked(fd, offset, num_bytes, height, width, mode, pixels if mode == MODE_RAW else encoded)
    if code != GOOD or mode == MODE_RAW:
        return code, 1
    # At full size for an isotropic crop, which must not show the image's axes as libjpeg's scaling does.
    denominator = _denominator(boxes, sizes, i) if all_area else 1
    if decode_into(encoded, num_bytes, height, width, pixels, 1, denominator, handle) != 0:
        return CORRUPT, 1
    return GOOD, denominator


def _compiled(stamp: int) -> Callable[..., None]:
    """Compile the loop. It contains code of other files, so `stamp` makes them a part of the cache's key."""

    @njit(cache=True, nogil=True)
    def decode_chunk(
        fds: np.ndarray,
        offsets: np.ndarray,
        num_bytes: np.ndarray,
        heights: np.ndarray,
        widths: np.ndarray,
        modes: np.ndarray,
        boxes: np.ndarray,
        sizes: np.ndarray,
        outs: tuple[np.ndarray, ...],
        encoded: np.ndarray,
        pixels: np.ndarray,
        codes: np.ndarray,
        handle: int,
    ) -> None:
        if stamp < 0:  # never true: it makes `stamp` a part of the cache's key
            return
        # outs is a tuple of arrays, so numba compiles and caches this short loop for each number of views.
        for i in range(len(codes)):
            height, width = int(heights[i]), int(widths[i])
            codes[i], denominator = _decode_one(
                fds[i],
                offsets[i],
                num_bytes[i],
                height,
                width,
                modes[i],
                boxes,
                sizes,
                i,
                encoded,
                pixels,
                handle,
            )
            if codes[i] != GOOD:
                continue
            rows, columns = -(-height // denominator), -(-width // denominator)
            for k in range(len(outs)):
                if boxes[k, i, 4] != AREA:
                    diagonal = boxes[k, i, 4] == DIAGONAL
                    top, left, side = int(boxes[k, i, 0]), int(boxes[k, i, 1]), int(boxes[k, i, 2])
                    isotropic_resize(pixels, rows, columns, top, left, side, diagonal, outs[k][i])
                    continue
                top, left = boxes[k, i, 0] / denominator, boxes[k, i, 1] / denominator
                box_height, box_width = boxes[k, i, 2] / denominator, boxes[k, i, 3] / denominator
                area_resize(pixels, rows, columns, top, left, box_height, box_width, outs[k][i])

    return decode_chunk


_decode_chunk = _compiled(stamp(area, codes, encoded, isotropic, libffcv, dataset))


class FfcvDecoder(Decoder):
    """A decoder on the CPU for betons.

    Raises:
        ValueError: If libffcv is not installed.
    """

    name = "ffcv"
    reasons = REASONS

    def __init__(self) -> None:
        library()
        self._scratch = threading.local()

    @override
    def decode(self, rows: SampleTable, boxes: list[np.ndarray], outs: list[np.ndarray]) -> np.ndarray:
        num = len(rows.offset)
        check_request(boxes, outs, num)
        status = np.zeros(num, np.int8)
        if num == 0:
            return status
        heights, widths = rows.height.astype(np.int64), rows.width.astype(np.int64)
        _decode_chunk(
            rows.fd,
            rows.offset,
            rows.num_bytes,
            heights,
            widths,
            rows.mode,
            np.stack(boxes),
            np.array([out.shape[1] for out in outs], np.int64),
            tuple(outs),
            self._memory("encoded", int(rows.num_bytes.max())),
            self._memory("pixels", int((heights * widths).max()) * 3),
            status,
            self._handle().address,
        )
        return status

    def _handle(self) -> Handle:
        """Return this thread's handle, which is freed with the thread."""
        handle: Handle | None = getattr(self._scratch, "handle", None)
        if handle is None:
            handle = self._scratch.handle = Handle("tjInitDecompress")
        return handle

    def _memory(self, use: str, num_bytes: int) -> np.ndarray:
        """Return this thread's scratch memory for a use; it grows to the largest sample."""
        memory: np.ndarray | None = getattr(self._scratch, use, None)
        if memory is None or len(memory) < num_bytes:
            memory = np.empty(num_bytes, np.uint8)
            setattr(self._scratch, use, memory)
        return memory
