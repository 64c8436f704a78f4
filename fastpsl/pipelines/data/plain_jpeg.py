"""JPEG to RGB without libffcv: by torchvision, or by Pillow where torchvision has no decoder.

torchvision 0.29 has deprecated its decoders and will remove them. A 400 x 533 photo takes torchvision 0.50 ms
and Pillow 0.72 ms. Both hide libjpeg's warnings and refuse truncated files.
"""

import functools
import io
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from fastpsl.pipelines.decoders.jpeg_scans import SCAN_REASONS, jpeg_scans

_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"

Decode = Callable[[bytes], np.ndarray | None]


@functools.cache
def plain_decoder() -> Decode:
    """Return a function from a JPEG's bytes to RGB, uint8 [H, W, 3], or to None where libjpeg gives up.

    Many threads may call it. The header must have been checked, because a damaged one can ask for any amount
    of memory.
    """
    # torchvision warns at each call, and users can do nothing about it. The filter stays, because a temporary
    # one is not safe in threads.
    warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities of TorchVision")
    try:
        decode = _by_torchvision()
        sample = io.BytesIO()
        Image.new("RGB", (8, 8)).save(sample, "JPEG")
        return decode if decode(sample.getvalue()) is not None else by_pillow
    except (ImportError, AttributeError):  # torchvision has no decoder, or was built without libjpeg
        return by_pillow


def _by_torchvision() -> Decode:
    import torch  # imported late, because torch takes seconds and libffcv writes betons without it
    from torchvision.io import ImageReadMode, decode_jpeg

    def by_torchvision(data: bytes) -> np.ndarray | None:
        if jpeg_scans(data) in SCAN_REASONS:
            return None
        try:
            planes = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        except RuntimeError:
            return None
        return planes.permute(1, 2, 0).contiguous().numpy()

    return by_torchvision


def by_pillow(data: bytes) -> np.ndarray | None:
    """Decode as `plain_decoder` does where torchvision has no decoder."""
    # Pillow may accept a file without an end marker; libjpeg warns.
    if data.rfind(_END_OF_IMAGE) < data.rfind(_START_OF_SCAN) or jpeg_scans(data) in SCAN_REASONS:
        return None
    try:
        # Image.open would look for further images in the file.
        with JpegImageFile(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except Exception:  # noqa: BLE001  Pillow's parsers raise nearly anything on damaged files
        return None
