"""The turbo decoder: it decodes the parts of images that their crops need, and resizes, in C (samples.c)."""

import numpy as np
from typing_extensions import override

from fastpsl.pipelines.data.dataset import SampleTable
from fastpsl.pipelines.decoders import libturbo
from fastpsl.pipelines.decoders.by_chunk import ChunkDecoder


class TurboDecoder(ChunkDecoder):
    """A decoder on the CPU for betons, by our own library on libjpeg-turbo."""

    name = "turbo"
    _bindings = libturbo

    @override
    def _decode_chunk(
        self, rows: SampleTable, boxes: np.ndarray, outs: list[np.ndarray], scratch: list[np.ndarray]
    ) -> np.ndarray:
        status = np.empty(len(rows.offset), np.int8)
        columns = [
            np.ascontiguousarray(column)
            for column in (rows.fd, rows.offset, rows.num_bytes, rows.height, rows.width, rows.mode)
        ]
        sizes = np.array([out.shape[1] for out in outs], np.int64)
        addresses = np.array([out.ctypes.data for out in outs], np.uintp)
        libturbo.library().fastpsl_decode_samples(
            self._handle(), len(status), *(column.ctypes.data for column in columns), len(outs),
            *(each.ctypes.data for each in (boxes, sizes, addresses, *scratch, status)),
        )  # fmt: skip
        return status
