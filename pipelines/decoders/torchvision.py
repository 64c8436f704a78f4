"""The plain way, where nothing can be compiled, and the reference of the tests: torchvision decodes, Pillow resizes."""

import os

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from fastpsl.pipelines.beton import Rows
from fastpsl.pipelines.decoders.codes import (
    BAD_BOX,
    BAD_MODE,
    CORRUPT,
    GOOD,
    MODE_JPEG,
    MODE_RAW,
    NOT_JPEG,
    RAW_SIZE,
    REASONS,
    SHORT_READ,
    WRONG_COMPONENTS,
    WRONG_SIZE,
    check_request,
)
from fastpsl.pipelines.libffcv import HEADER_GOOD, jpeg_header

# The filter nearest to an exact area mean and to ffcv's INTER_AREA, on 25 photos: mean difference to it in 1/255 for
# random resized crops / halving / enlarging: HAMMING 0.6 / 0.5 / 0.2, BOX 1.7 / 0.8 / 1.2 (whole pixels only),
# antialiased bilinear 0.6 / 1.3 / 0.8; all take 0.5 to 0.8 ms a crop.
_FILTER = Image.Resampling.HAMMING


class TorchvisionDecoder:
    name = "torchvision"
    reasons = REASONS

    def decode(self, rows: Rows, boxes: list[np.ndarray], outs: list[np.ndarray]) -> np.ndarray:
        num = len(rows.offset)
        check_request(boxes, outs, num)
        codes = np.full(num, GOOD, np.int8)
        for i in range(num):
            code, picture = _decode_one(rows, i)
            if picture is None or any(_outside(box[i], *picture.shape[:2]) for box in boxes):
                codes[i] = code or BAD_BOX
                continue
            image = Image.fromarray(picture)
            for box, out in zip(boxes, outs, strict=True):
                top, left, height, width = (int(value) for value in box[i])
                size = out.shape[1]
                crop = image.resize((size, size), _FILTER, (left, top, left + width, top + height))
                out[i] = np.asarray(crop)
        return codes


def read_bytes(rows: Rows, i: int) -> bytes:
    """The sample's bytes, as many as there are; none where the file cannot be read."""
    try:
        return os.pread(int(rows.fd[i]), int(rows.num_bytes[i]), int(rows.offset[i]))
    except OSError:
        return b""


def _decode_one(rows: Rows, i: int) -> tuple[int, np.ndarray | None]:
    """(code, uint8 [H, W, 3] or None)."""
    height, width = int(rows.height[i]), int(rows.width[i])
    data = np.frombuffer(bytearray(read_bytes(rows, i)), np.uint8)
    if len(data) < rows.num_bytes[i]:
        return SHORT_READ, None
    if rows.mode[i] == MODE_RAW:
        if len(data) != height * width * 3:
            return RAW_SIZE, None
        return GOOD, data.reshape(height, width, 3)
    if rows.mode[i] != MODE_JPEG:
        return BAD_MODE, None
    # Before the decoder allocates what a damaged header asks for.
    status, header_height, header_width, components, _, _ = jpeg_header(data, len(data))
    if status != HEADER_GOOD:
        return NOT_JPEG, None
    if (header_height, header_width) != (height, width):
        return WRONG_SIZE, None
    if components not in (1, 3):
        return WRONG_COMPONENTS, None
    try:
        decoded = decode_jpeg(torch.from_numpy(data), mode=ImageReadMode.RGB)
    except RuntimeError:
        return CORRUPT, None
    return GOOD, decoded.permute(1, 2, 0).contiguous().numpy()


def _outside(box: np.ndarray, rows: int, columns: int) -> bool:
    top, left, height, width = (int(value) for value in box)
    return top < 0 or left < 0 or height < 1 or width < 1 or top + height > rows or left + width > columns
