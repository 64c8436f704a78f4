"""The turbo decoder: it decodes the parts of images that their crops need, and resizes, in C (samples.c).

Of a folder, Pillow decodes the other formats, and the JPEGs that libjpeg warns of.
"""

import ctypes
import os
import threading
from dataclasses import dataclass, replace

import numpy as np
from typing_extensions import override

from fastpsl.files.workers import default_num_threads, num_local_ranks
from fastpsl.kernels.isotropic import DIAGONAL, margin_px, reach_px
from fastpsl.pipelines.decoders import codes
from fastpsl.pipelines.decoders.decoder import Decoder, Request, is_isotropic
from fastpsl.pipelines.decoders.whole_images import decode_whole
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.interface.dataset import SampleTable

# A window with more than this many times the bytes of its sample's crops is cropped on the CPU. There nearly
# all its cost is the decoding, and copies and memory would have no bound.
_MOST_CROPS = 8  # a larger one would take more memory, a smaller one more of the CPU (not measured)


@dataclass(frozen=True, eq=False)
class Windows:
    """The places of a batch's windows in an arena. A window has all that a sample's isotropic views see."""

    # int32 [n, 4]: top, left, height, width, in pixels of the upright images. Zeros where the decoder is
    # to crop all views of a sample.
    places: np.ndarray
    # int64 [n]: where the decoder puts each window in the arena. Its rows lie one after the other.
    offsets: np.ndarray
    num_bytes: int  # the bytes of all windows


def plan_windows(rows: SampleTable, boxes: list[np.ndarray], sizes_px: list[int]) -> Windows:
    """Return the windows of a batch, without a gap between them, for boxes, int32 [n, 5], of each view.

    One view at least is isotropic.
    """
    starts, stops, crop_bytes = [], [], 0
    for box, size_px in zip(boxes, sizes_px, strict=True):
        if not is_isotropic(box):
            continue
        box = box.astype(np.int64)
        sides = box[:, 2]
        beyond = np.where(box[:, 4] == DIAGONAL, margin_px(sides, size_px), reach_px(sides, size_px))
        beyond = beyond.astype(np.int64)[:, None]
        starts.append(box[:, :2] - beyond)
        stops.append(box[:, :2] + box[:, 2:4] + beyond)
        crop_bytes += 3 * size_px**2
    start, stop = np.min(starts, axis=0), np.max(stops, axis=0)
    num_bytes = 3 * (stop - start).prod(1)
    limits = np.stack([rows.height, rows.width], 1)
    # A box that does not lie in its image is the decoder's to refuse.
    fits = (start >= 0).all(1) & (start < stop).all(1) & (stop <= limits).all(1)
    fits &= num_bytes <= _MOST_CROPS * crop_bytes
    places = np.where(fits[:, None], np.concatenate([start, stop - start], 1), 0).astype(np.int32)
    ends = np.where(fits, num_bytes, 0).cumsum()
    return Windows(places, np.concatenate([[0], ends[:-1]]).astype(np.int64), int(ends[-1]))


# Threads of all local ranks that may wait for storage, beside those that decode, and bytes that they hold.
# More would serve a slower storage (not measured).
_MAX_READERS, _MAX_READ_BYTES = 128, 256 << 20
_SLOW_NS = 200_000  # of reading a sample; from the page cache it takes a tenth
_KEPT = 0.9  # of the sums before, with each further part of a batch: the last ten or so count (not measured)


class TurboDecoder(Decoder):
    """A decoder on the CPU for dataset files and folders, by our own library on libjpeg-turbo."""

    name = "turbo"

    def __init__(self, num_threads: int | None = None) -> None:
        self._library = libturbo.library()
        self._local = threading.local()  # each thread has a handle of its own
        # So many threads decode at a time. Others of `wanted_threads` read meanwhile.
        self._slots = libturbo.Slots(num_threads or default_num_threads())
        # Of late: samples, their bytes, and the ns of reading and of decoding them. Without a lock, because a
        # part that is lost changes them little.
        self._sums = np.zeros(4)

    @override
    def begin(
        self,
        rows: SampleTable,
        boxes: list[np.ndarray],
        outs: list[np.ndarray],
        windows: Windows | None = None,
        arena: np.ndarray | None = None,
    ) -> Request:
        """Return a request, in which `windows` are written to `arena`, uint8 [N], instead of isotropic views.

        For these an array of `outs` may be [0, S, S, 3], where no sample of the view is cropped here.
        """
        num = len(rows.indices)
        codes.check_request(boxes, outs, num, windows is not None and bool(windows.places[:, 2].all()))
        request = Request(rows, np.stack(boxes), outs, np.zeros(num, np.int8))
        columns = rows.fd, rows.offset, rows.num_bytes, rows.height, rows.width, rows.mode, rows.orientation
        arrays = [np.ascontiguousarray(column) for column in columns]
        arrays += [request.boxes, np.array([out.shape[1] for out in outs], np.int64)]
        arrays += [np.array([out.ctypes.data for out in outs], np.uintp), request.codes]
        of_windows = []
        if windows is not None:
            assert arena is not None and len(arena) >= windows.num_bytes
            of_windows = [np.ascontiguousarray(windows.places), np.ascontiguousarray(windows.offsets), arena]
        paths = _c_strings(rows.path)
        batch = libturbo.Batch(
            num,
            len(outs),
            *(array.ctypes.data for array in arrays),
            paths and ctypes.addressof(paths),
            self._slots.address,
            *(array.ctypes.data for array in of_windows),
        )
        # All but the address live as long as the request.
        native = ctypes.addressof(batch), batch, arrays, paths, of_windows
        return replace(request, native=native)

    @override
    def decode_part(self, request: Request, part: slice) -> None:
        if not hasattr(self._local, "handle"):  # freed with the thread
            self._local.handle = libturbo.Handle()
        batch, _, _, paths, _ = request.native
        sums = np.array([part.stop - part.start, request.rows.num_bytes[part].sum(), 0, 0])
        self._library.fastpsl_decode_samples(
            self._local.handle.address, batch, part.start, part.stop, sums[2:].ctypes.data
        )
        self._sums = _KEPT * self._sums + sums
        if paths:
            self._decode_the_rest(request, part)

    def _decode_the_rest(self, request: Request, part: slice) -> None:
        """Decode the files that the C library leaves to Pillow."""
        for i in range(part.start, part.stop):
            if request.codes[i] not in (codes.CORRUPT, codes.BAD_FILE) or not request.rows.path[i]:
                continue
            request.codes[i] = codes.READING  # a wait that is too long names the samples that are read
            with self._slots:
                code, image = decode_whole(request.rows, i)
                if image is not None:
                    image = np.ascontiguousarray(image)
                    code = self._library.fastpsl_crop_image(request.native[0], i, image.ctypes.data)
            request.codes[i] = code

    @override
    def wanted_threads(self, num_threads: int) -> int:
        """Return `num_threads`, and more where they wait for storage."""
        num, num_bytes, reading, decoding = self._sums
        if reading < _SLOW_NS * num:  # more threads would only take cores from each other
            return num_threads
        most = min(_MAX_READERS // num_local_ranks(), int(_MAX_READ_BYTES * num / max(num_bytes, 1.0)))
        return num_threads + min(most, int(num_threads * reading / max(decoding, 1.0)))


def _c_strings(paths: np.ndarray) -> "ctypes.Array[ctypes.c_char_p] | None":
    """Return paths, object [n], for C: NULL in the place of empty ones, and None where all are."""
    if not paths.any():
        return None
    return (ctypes.c_char_p * len(paths))(*(os.fsencode(path) if path else None for path in paths))
