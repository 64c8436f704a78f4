"""The turbo decoder: it decodes the parts of images that their crops need, and resizes, in C (samples.c)."""

import ctypes
import threading

import numpy as np
from typing_extensions import override

from fastpsl.pipelines.data.dataset import SampleTable
from fastpsl.pipelines.decoders import libturbo
from fastpsl.pipelines.decoders.codes import REASONS
from fastpsl.pipelines.decoders.decoder import Decoder, Request


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
    def begin(self, rows: SampleTable, boxes: list[np.ndarray], outs: list[np.ndarray]) -> Request:
        request = super().begin(rows, boxes, outs)
        columns = rows.fd, rows.offset, rows.num_bytes, rows.height, rows.width, rows.mode
        arrays = [np.ascontiguousarray(column) for column in columns]
        arrays += [request.boxes, np.array([out.shape[1] for out in outs], np.int64)]
        arrays += [np.array([out.ctypes.data for out in outs], np.uintp), request.codes]
        batch = libturbo.Batch(len(rows.fd), len(outs), *(array.ctypes.data for array in arrays))
        native = ctypes.addressof(batch), batch, arrays  # the last two live as long as the request
        return Request(rows, request.boxes, outs, request.codes, native)

    @override
    def decode_part(self, request: Request, part: slice) -> None:
        if not hasattr(self._local, "handle"):  # freed with the thread
            self._local.handle = libturbo.Handle()
        self._library.fastpsl_decode_samples(
            self._local.handle.address, request.native[0], part.start, part.stop
        )
