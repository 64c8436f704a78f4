"""Whole images, upright, for decoders and loaders that take no parts of them."""

import numpy as np

from fastpsl.pipelines.decoders import codes
from fastpsl.pipelines.image.coefficients import OtherVersion, to_jpeg
from fastpsl.pipelines.image.image_file import decode_any
from fastpsl.pipelines.image.jpeg import HEADER_GOOD, decode_plainly, jpeg_header
from fastpsl.pipelines.image.orientation import TURNED, turn
from fastpsl.pipelines.interface import dataset
from fastpsl.pipelines.interface.reading import Reading


def decode_whole(rows: dataset.SampleTable, i: int) -> tuple[int, np.ndarray | None]:
    """Return the code of row i and its whole image, upright, uint8 [H, W, 3], or None."""
    size = int(rows.height[i]), int(rows.width[i])
    data = dataset.read_bytes(rows, i)
    if rows.path[i] and len(data) != rows.num_bytes[i]:
        return codes.CHANGED, None
    if len(data) < rows.num_bytes[i]:
        return codes.SHORT_READ, None
    if rows.mode[i] == dataset.MODE_RAW:
        if len(data) != size[0] * size[1] * 3:
            return codes.RAW_SIZE, None
        return codes.GOOD, np.frombuffer(data, np.uint8).reshape(*size, 3)
    if rows.mode[i] == dataset.MODE_FILE:
        return _decode_file(data, size, rows.reading)
    if rows.mode[i] not in (dataset.MODE_JPEG, dataset.MODE_COEFFICIENTS):
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
    if rows.mode[i] == dataset.MODE_COEFFICIENTS:
        try:
            data = to_jpeg(data, height, width)
        except OtherVersion:
            return codes.OTHER_VERSION, None
        except dataset.BadImage:
            return codes.CORRUPT, None
    image = decode_plainly(data)
    if image is None or image.shape != (height, width, 3):
        return codes.CORRUPT, None
    return codes.GOOD, turn(image, orientation)


def _decode_file(data: bytes, size: tuple[int, int], reading: Reading) -> tuple[int, np.ndarray | None]:
    try:
        image = decode_any(data, reading)
    except dataset.BadImage:
        return codes.BAD_FILE, None
    return (codes.GOOD, image) if image.shape[:2] == size else (codes.CHANGED, None)
