"""JPEG to RGB where our C library is missing, or leaves a JPEG out: by Pillow.

torchcodec is faster, but would be one more package for a fallback. Pillow hides libjpeg's warnings and
refuses truncated files.
"""

import io

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile

from fastpsl.pipelines.decoders.jpeg_scans import SCAN_REASONS, jpeg_scans

_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"


def decode_plainly(data: bytes) -> np.ndarray | None:
    """Return a JPEG as RGB, uint8 [H, W, 3], or None where libjpeg gives up.

    The header must have been checked, because a damaged one can ask for any amount of memory.
    """
    # Pillow may accept a file without an end marker; libjpeg warns.
    if data.rfind(_END_OF_IMAGE) < data.rfind(_START_OF_SCAN) or jpeg_scans(data) in SCAN_REASONS:
        return None
    try:
        # Image.open would look for further images in the file.
        with JpegImageFile(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  Pillow's parsers raise nearly anything on damaged files
        return None
