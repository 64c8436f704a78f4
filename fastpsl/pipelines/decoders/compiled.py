"""The loop of the compiled decoders (ffcv, turbo): it reads, checks, decodes and crops a chunk of samples.

It holds no lock and calls no threading layer. The loader's threads run it in parallel, each with its own
scratch memory. libffcv trusts its caller, so headers, sizes and boxes are checked here first.
"""

import threading
from collections.abc import Callable
from types import ModuleType

import numpy as np
from numba import njit
from typing_extensions import override

from fastpsl.kernels import isotropic
from fastpsl.kernels.isotropic import DIAGONAL, fits_isotropic, isotropic_margin_px, isotropic_resize
from fastpsl.pipelines.data import dataset
from fastpsl.pipelines.data.dataset import MODE_RAW, SampleTable
from fastpsl.pipelines.decoders import area, codes, encoded, libffcv, libturbo
from fastpsl.pipelines.decoders.area import area_resize
from fastpsl.pipelines.decoders.codes import AREA, BAD_BOX, CORRUPT, GOOD, REASONS, check_request
from fastpsl.pipelines.decoders.decoder import Decoder
from fastpsl.pipelines.decoders.encoded import read_checked, stamp
from fastpsl.pipelines.decoders.libffcv import decode_into
from fastpsl.pipelines.decoders.libturbo import LARGEST_SHRINK, decode_region, resize_region

# A JPEG is decoded at 1/d (2, 4, 8) where every box is at least 1.5 d times as large as its crop. The mean
# difference to a full decode in 1/255 on 40 photos, for d = 2 / 4 / 8: with 1.0 d 2.2 / 2.4 / 3.1, with 1.5 d
# 1.5 / 1.6 / 2.0, with 2 d 1.1 / 1.1 / 1.4.
SCALE_MARGIN = 1.5


@njit(cache=True, nogil=True)
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


@njit(nogil=True)  # cached only within the loop below, because its key includes the stamp of all files called
def _are_inside(boxes: np.ndarray, sizes: np.ndarray, i: int, height: int, width: int) -> bool:
    """Return whether all boxes of sample i lie in its image, with their kernels' margins."""
    for k in range(boxes.shape[0]):
        top, left, box_height, box_width = boxes[k, i, 0], boxes[k, i, 1], boxes[k, i, 2], boxes[k, i, 3]
        if top < 0 or left < 0 or box_height < 1 or box_width < 1:
            return False
        if box_height > height - top or box_width > width - left:
            return False
        if boxes[k, i, 4] != AREA and not fits_isotropic(
            height, width, top, left, box_height, box_width, sizes[k]
        ):
            return False
    return True


@njit(nogil=True)
def _find_region(boxes: np.ndarray, sizes: np.ndarray, i: int, denominator: int, region: np.ndarray) -> None:
    """Write the smallest region with all boxes of sample i: top, left, height, width in scaled pixels."""
    top, left, bottom, right = 1 << 30, 1 << 30, 0, 0
    for k in range(boxes.shape[0]):
        margin = 0
        if boxes[k, i, 4] != AREA:
            margin = isotropic_margin_px(boxes[k, i, 2], sizes[k])
        top = min(top, (boxes[k, i, 0] - margin) // denominator)
        left = min(left, (boxes[k, i, 1] - margin) // denominator)
        bottom = max(bottom, -(-(boxes[k, i, 0] + boxes[k, i, 2] + margin) // denominator))
        right = max(right, -(-(boxes[k, i, 1] + boxes[k, i, 3] + margin) // denominator))
    region[0], region[1], region[2], region[3] = top, left, bottom - top, right - left


@njit(nogil=True)
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
    placed: np.ndarray,
    is_turbo: bool,
    handle: int,
) -> tuple[int, int]:
    """Decode what the boxes of a sample need into `pixels`, and return its code and denominator.

    `placed` is the part that was decoded: top, left, height, width in scaled pixels.
    """
    if not _are_inside(boxes, sizes, i, height, width):
        return BAD_BOX, 1
    placed[0], placed[1], placed[2], placed[3] = 0, 0, height, width
    code = read_checked(fd, offset, num_bytes, height, width, mode, pixels if mode == MODE_RAW else encoded)
    if code != GOOD or mode == MODE_RAW:
        return code, 1
    denominator = _denominator(boxes, sizes, i)
    if is_turbo:
        region = np.empty(4, np.int64)
        _find_region(boxes, sizes, i, denominator, region)
        status = decode_region(encoded, num_bytes, height, width, denominator, region, pixels, placed, handle)
    else:
        placed[2], placed[3] = -(-height // denominator), -(-width // denominator)
        status = decode_into(encoded, num_bytes, height, width, pixels, 1, denominator, handle)
    return GOOD if status == 0 else CORRUPT, denominator


@njit(nogil=True)
def _area_of(box: np.ndarray, placed: np.ndarray, denominator: int) -> tuple[float, float, float, float]:
    """Return a box's top, left, height and width in the part that was decoded, in scaled pixels."""
    top, left = box[0] / denominator - placed[0], box[1] / denominator - placed[1]
    return top, left, box[2] / denominator, box[3] / denominator


@njit(nogil=True)
def _crop_in_c(
    pixels: np.ndarray, placed: np.ndarray, box: np.ndarray, denominator: int, out: np.ndarray
) -> int:
    """Crop a box that `_is_plain` holds for, as `_crop` does."""
    top, left, height, width = _area_of(box, placed, denominator)
    return CORRUPT if resize_region(pixels, placed[3], top, left, height, width, out) else GOOD


@njit(nogil=True)
def _crop(
    pixels: np.ndarray, placed: np.ndarray, box: np.ndarray, denominator: int, is_turbo: bool, out: np.ndarray
) -> int:
    """Crop a box of a sample's image, of which `pixels` has the part `placed`, and return the code."""
    rows, columns = placed[2], placed[3]
    if box[4] != AREA:
        top, left = int(box[0]) - placed[0], int(box[1]) - placed[1]
        isotropic_resize(pixels, rows, columns, top, left, int(box[2]), box[4] == DIAGONAL, out)
        return GOOD
    if is_turbo and max(box[2], box[3]) <= LARGEST_SHRINK * denominator * len(out):
        return _crop_in_c(pixels, placed, box, denominator, out)
    within = _area_of(box, placed, denominator)
    area_resize(pixels, rows, columns, within[0], within[1], within[2], within[3], out)
    return GOOD


def _compiled(stamp: int, is_plain: bool) -> Callable[..., None]:
    """Return the loop, which is compiled when it is first called.

    Args:
        stamp: A number for the code of other files that it contains: a part of the cache's key.
        is_plain: Whether it is for what `_is_plain` says, which leaves out most of the code. It is compiled
            in half the time.
    """

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
        is_turbo: bool,
        handle: int,
    ) -> None:
        if stamp < 0:  # never true: it makes `stamp` a part of the cache's key
            return
        placed = np.empty(4, np.int64)
        # outs is a tuple of arrays, so numba compiles and caches this short loop for each number of views.
        for i in range(len(codes)):
            codes[i], denominator = _decode_one(
                fds[i],
                offsets[i],
                num_bytes[i],
                int(heights[i]),
                int(widths[i]),
                modes[i],
                boxes,
                sizes,
                i,
                encoded,
                pixels,
                placed,
                is_turbo,
                handle,
            )
            for k in range(len(outs)):
                if codes[i] == GOOD:
                    if is_plain:  # numba leaves out what the other branch calls
                        codes[i] = _crop_in_c(pixels, placed, boxes[k, i], denominator, outs[k][i])
                    else:
                        codes[i] = _crop(pixels, placed, boxes[k, i], denominator, is_turbo, outs[k][i])

    return decode_chunk


_STAMP = stamp(area, codes, encoded, isotropic, libffcv, libturbo, dataset)
_decode_chunk = _compiled(_STAMP, is_plain=False)
_decode_plain_chunk = _compiled(_STAMP, is_plain=True)


def _is_plain(boxes: np.ndarray, sizes: np.ndarray) -> bool:
    """Return whether the C library can make all crops: of areas, and none too large for it."""
    return bool((boxes[..., 4] == AREA).all() and boxes[..., 2:4].max() <= LARGEST_SHRINK * sizes.min())


class CompiledDecoder(Decoder):
    """A decoder on the CPU for betons.

    Raises:
        ValueError: If its library is missing.
    """

    reasons = REASONS
    _bindings: ModuleType  # libturbo or libffcv

    def __init__(self) -> None:
        self._bindings.library()
        self._scratch = threading.local()

    @override
    def decode(self, rows: SampleTable, boxes: list[np.ndarray], outs: list[np.ndarray]) -> np.ndarray:
        num = len(rows.offset)
        check_request(boxes, outs, num)
        status = np.zeros(num, np.int8)
        if num == 0:
            return status
        heights, widths = rows.height.astype(np.int64), rows.width.astype(np.int64)
        all_boxes, sizes = np.stack(boxes), np.array([out.shape[1] for out in outs], np.int64)
        is_turbo = self._bindings is libturbo
        function = _decode_plain_chunk if is_turbo and _is_plain(all_boxes, sizes) else _decode_chunk
        function(
            rows.fd,
            rows.offset,
            rows.num_bytes,
            heights,
            widths,
            rows.mode,
            all_boxes,
            sizes,
            tuple(outs),
            self._memory("encoded", int(rows.num_bytes.max())),
            self._memory("pixels", int((heights * widths).max()) * 3),
            status,
            is_turbo,
            self._handle().address,
        )
        return status

    def _handle(self) -> "libffcv.Handle | libturbo.Handle":
        """Return this thread's handle, which is freed with the thread."""
        if not hasattr(self._scratch, "handle"):
            self._scratch.handle = self._bindings.Handle()
        handle: libffcv.Handle | libturbo.Handle = self._scratch.handle
        return handle

    def _memory(self, use: str, num_bytes: int) -> np.ndarray:
        """Return this thread's scratch memory for a use; it grows to the largest sample."""
        memory: np.ndarray | None = getattr(self._scratch, use, None)
        if memory is None or len(memory) < num_bytes:
            memory = np.empty(num_bytes, np.uint8)
            setattr(self._scratch, use, memory)
        return memory
