"""The turbo decoder: it decodes the parts of images that their crops need, and resizes, in C (samples.c)."""

import ctypes
import threading
from dataclasses import replace

import numpy as np
from typing_extensions import override

from fastpsl.pipelines.data.dataset import SampleTable
from fastpsl.pipelines.decoders import libturbo
from fastpsl.pipelines.decoders.codes import REASONS, check_request
from fastpsl.pipelines.decoders.decoder import Decoder, Request
from fastpsl.pipelines.decoders.windows import Windows


class TurboDecoder(Decoder):
    """A decoder on the CPU for dataset files, by our own library on libjpeg-turbo.

    Raises:
        ValueError: If the library is missing.
    """

    name = "turbo"
    reasons = REASONS

    def __init__(self) -> None:
        self._library = libturbo.library()
        self._local = threading.local()  # each thread has a handle of its own

    @override
    def begin(
        self,
        rows: SampleTable,
        boxes: list[np.ndarray],
        outs: list[np.ndarray],
        windows: Windows | None = None,
        arena: np.ndarray | None = None,
    ) -> Request:
        """Return a request for the decoding of a batch. Any thread may call it.

        Args:
            rows: The samples, n of them.
            boxes: For each view int32 [n, 5].
            outs: For each view uint8 [n, S, S, 3], RGB, written in place; [0, S, S, 3] where no sample of the
                view is cropped here.
            windows: The windows that are written instead of isotropic views. By default, there are none.
            arena: uint8 [N], where they are written.
        """
        num = len(rows.indices)
        check_request(boxes, outs, num, windows is not None and bool(windows.places[:, 2].all()))
        request = Request(rows, np.stack(boxes), outs, np.zeros(num, np.int8))
        columns = rows.fd, rows.offset, rows.num_bytes, rows.height, rows.width, rows.mode
        arrays = [np.ascontiguousarray(column) for column in columns]
        arrays += [request.boxes, np.array([out.shape[1] for out in outs], np.int64)]
        arrays += [np.array([out.ctypes.data for out in outs], np.uintp), request.codes]
        if windows is not None:
            assert arena is not None and len(arena) >= windows.num_bytes
            arrays += [np.ascontiguousarray(windows.places), np.ascontiguousarray(windows.offsets), arena]
        batch = libturbo.Batch(num, len(outs), *(array.ctypes.data for array in arrays))
        native = ctypes.addressof(batch), batch, arrays  # the last two live as long as the request
        return replace(request, native=native)

    @override
    def decode_part(self, request: Request, part: slice) -> None:
        if not hasattr(self._local, "handle"):  # freed with the thread
            self._local.handle = libturbo.Handle()
        self._library.fastpsl_decode_samples(
            self._local.handle.address, request.native[0], part.start, part.stop
        )
