"""The plain decoder: Pillow decodes whole images exactly, and nothing need be built."""

import numpy as np
from typing_extensions import override

from fastpsl.kernels.isotropic import DIAGONAL
from fastpsl.kernels.isotropic_loops import isotropic_resize
from fastpsl.pipelines.data.dataset import MODE_FILE, MODE_JPEG, MODE_RAW, SampleTable, read_bytes
from fastpsl.pipelines.data.image_file import BrokenImage, decode_any
from fastpsl.pipelines.data.orientation import TURNED, turn
from fastpsl.pipelines.data.plain_jpeg import decode_plainly
from fastpsl.pipelines.decoders import codes
from fastpsl.pipelines.decoders.area import area_resize
from fastpsl.pipelines.decoders.boxes import cannot
from fastpsl.pipelines.decoders.decoder import Decoder, Request
from fastpsl.pipelines.decoders.jpeg_header import HEADER_GOOD, jpeg_header


class TorchvisionDecoder(Decoder):
    """A decoder on the CPU for dataset files and folders."""

    name = "torchvision"
    reasons = codes.REASONS

    @override
    def decode_part(self, request: Request, part: slice) -> None:
        rows, outside = request.rows, np.zeros(part.stop - part.start, bool)
        for box, out in zip(request.boxes, request.outs, strict=True):
            outside |= cannot(box[part], out.shape[1], rows.height[part], rows.width[part])
        for i in range(part.start, part.stop):
            request.codes[i] = codes.READING
            code, image = self.decode_image(rows, i)
            request.codes[i] = code
            if image is None or outside[i - part.start]:
                request.codes[i] = code or codes.BAD_BOX
                continue
            image = np.ascontiguousarray(image)
            for box, out in zip(request.boxes, request.outs, strict=True):
                _crop(image, box[i], out[i])

    def decode_image(self, rows: SampleTable, i: int) -> tuple[int, np.ndarray | None]:
        """Return the code of row i and its whole image, upright, uint8 [H, W, 3], or None."""
        return _decode_one(rows, i)


def _decode_one(rows: SampleTable, i: int) -> tuple[int, np.ndarray | None]:
    size = int(rows.height[i]), int(rows.width[i])
    data = read_bytes(rows, i)
    if rows.path[i] and len(data) != rows.num_bytes[i]:
        return codes.CHANGED, None
    if len(data) < rows.num_bytes[i]:
        return codes.SHORT_READ, None
    if rows.mode[i] == MODE_RAW:
        if len(data) != size[0] * size[1] * 3:
            return codes.RAW_SIZE, None
        return codes.GOOD, np.frombuffer(data, np.uint8).reshape(*size, 3)
    if rows.mode[i] == MODE_FILE:
        return _decode_file(data, size)
    if rows.mode[i] != MODE_JPEG:
        return codes.BAD_MODE, None
    # Checked first, because the decoder would allocate memory for any size in a damaged header.
    status, height, width, components, _, _ = jpeg_header(data, len(data))
    if status != HEADER_GOOD:
        return codes.NOT_JPEG, None
    orientation = int(rows.orientation[i])
    if (width, height) != size if orientation >= TURNED else (height, width) != size:
        return codes.WRONG_SIZE, None
    if components not in (1, 3):
        return codes.WRONG_COMPONENTS, None
    image = decode_plainly(data)
    return (codes.CORRUPT, None) if image is None else (codes.GOOD, turn(image, orientation))


def _decode_file(data: bytes, size: tuple[int, int]) -> tuple[int, np.ndarray | None]:
    try:
        image = decode_any(data)
    except BrokenImage:
        return codes.BAD_FILE, None
    return (codes.GOOD, image) if image.shape[:2] == size else (codes.CHANGED, None)


def _crop(image: np.ndarray, box: np.ndarray, out: np.ndarray) -> None:
    top, left, height, width, resampling = (int(value) for value in box)
    # Contiguous and writable, so that numba compiles a single variant.
    pixels = np.require(image, requirements=("C", "W")).reshape(-1)
    rows, columns = image.shape[:2]
    if resampling == codes.AREA:
        area_resize(pixels, rows, columns, float(top), float(left), float(height), float(width), out)
    else:
        isotropic_resize(pixels, rows, columns, top, left, height, resampling == DIAGONAL, out)
