"""The plain decoder: Pillow decodes whole images exactly, and nothing need be built."""

import numpy as np
from typing_extensions import override

from fastpsl.kernels.isotropic import DIAGONAL
from fastpsl.kernels.isotropic_loops import isotropic_resize
from fastpsl.pipelines.decoders import codes
from fastpsl.pipelines.decoders.decoder import Decoder, Request
from fastpsl.pipelines.decoders.whole_images import decode_whole
from fastpsl.pipelines.image.area import area_resize


class PillowDecoder(Decoder):
    """A decoder on the CPU for dataset files and folders."""

    name = "pillow"

    @override
    def decode_part(self, request: Request, part: slice) -> None:
        rows, outside = request.rows, request.outside(part)
        for i in range(part.start, part.stop):
            request.codes[i] = codes.READING
            code, image = decode_whole(rows, i)
            request.codes[i] = code
            if image is None or outside[i - part.start]:
                request.codes[i] = code or codes.BAD_BOX
                continue
            # Contiguous and writable, so that numba compiles a single variant.
            image = np.require(image, requirements=("C", "W"))
            for box, out in zip(request.boxes, request.outs, strict=True):
                _crop(image, box[i], out[i])


def _crop(image: np.ndarray, box: np.ndarray, out: np.ndarray) -> None:
    top, left, height, width, resampling = (int(value) for value in box)
    pixels, (rows, columns) = image.reshape(-1), image.shape[:2]
    if resampling == codes.AREA:
        area_resize(pixels, rows, columns, float(top), float(left), float(height), float(width), out)
    else:
        isotropic_resize(pixels, rows, columns, top, left, height, resampling == DIAGONAL, out)
