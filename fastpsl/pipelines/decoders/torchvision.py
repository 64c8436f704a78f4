"""The plain way, where nothing can be compiled, and the reference of the tests: torchvision decodes, Pillow resizes."""

import numpy as np
from PIL import Image
from typing_extensions import override

from fastpsl.kernels.isotropic import DIAGONAL, isotropic_resize
from fastpsl.pipelines.data.dataset import MODE_FILE, MODE_JPEG, MODE_RAW, SampleTable, read_bytes
from fastpsl.pipelines.data.image_file import TURNED, BrokenImage, decode_any, turn
from fastpsl.pipelines.data.plain_jpeg import Decode, plain_decoder
from fastpsl.pipelines.decoders import codes
from fastpsl.pipelines.decoders.boxes import cannot
from fastpsl.pipelines.decoders.decoder import Decoder
from fastpsl.pipelines.decoders.libffcv import HEADER_GOOD, jpeg_header

# The filter nearest to an exact area mean and to ffcv's INTER_AREA, on 25 photos: mean difference to it in 1/255 for
# random resized crops / halving / enlarging: HAMMING 0.6 / 0.5 / 0.2, BOX 1.7 / 0.8 / 1.2 (whole pixels only),
# antialiased bilinear 0.6 / 1.3 / 0.8; all take 0.5 to 0.8 ms a crop.
_FILTER = Image.Resampling.HAMMING


class TorchvisionDecoder(Decoder):
    name = "torchvision"
    reasons = codes.REASONS

    def __init__(self) -> None:
        self._decode_jpeg = plain_decoder()

    @override
    def decode(self, rows: SampleTable, boxes: list[np.ndarray], outs: list[np.ndarray]) -> np.ndarray:
        num = len(rows.offset)
        codes.check_request(boxes, outs, num)
        status = np.zeros(num, np.int8)
        outside = np.zeros(num, bool)
        for box, out in zip(boxes, outs, strict=True):
            outside |= cannot(box, out.shape[1], rows.height, rows.width)
        for i in range(num):
            code, picture = self.picture(rows, i)
            if picture is None or outside[i]:
                status[i] = code or codes.BAD_BOX
                continue
            picture = np.ascontiguousarray(picture)
            for box, out in zip(boxes, outs, strict=True):
                _crop(picture, box[i], out[i])
        return status

    def picture(self, rows: SampleTable, i: int) -> tuple[int, np.ndarray | None]:
        """(code, the whole picture of row i, upright, uint8 [H, W, 3], or None)."""
        return _decode_one(rows, i, self._decode_jpeg)


def _decode_one(rows: SampleTable, i: int, decode_jpeg: Decode) -> tuple[int, np.ndarray | None]:
    """(code, uint8 [H, W, 3] or None)."""
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
    # Before the decoder allocates what a damaged header asks for.
    status, height, width, components, _, _ = jpeg_header(np.frombuffer(data, np.uint8), len(data))
    if status != HEADER_GOOD:
        return codes.NOT_JPEG, None
    orientation = int(rows.orientation[i])
    if (width, height) != size if orientation >= TURNED else (height, width) != size:
        return codes.WRONG_SIZE, None
    if components not in (1, 3):
        return codes.WRONG_COMPONENTS, None
    picture = decode_jpeg(data)
    return (codes.CORRUPT, None) if picture is None else (codes.GOOD, turn(picture, orientation))


def _decode_file(data: bytes, size: tuple[int, int]) -> tuple[int, np.ndarray | None]:
    try:
        picture = decode_any(data)
    except BrokenImage:
        return codes.BAD_FILE, None
    return (codes.GOOD, picture) if picture.shape[:2] == size else (codes.CHANGED, None)


def _crop(picture: np.ndarray, box: np.ndarray, out: np.ndarray) -> None:
    top, left, height, width, resampling = (int(value) for value in box)
    if resampling == codes.AREA:
        image = Image.fromarray(picture)
        out[:] = np.asarray(image.resize(out.shape[:2], _FILTER, (left, top, left + width, top + height)))
        return
    # One compiled variant, for read-only arrays too.
    pixels = np.require(picture, requirements=("C", "W")).reshape(-1)
    rows, columns = picture.shape[:2]
    isotropic_resize(pixels, rows, columns, top, left, height, resampling == DIAGONAL, out)
