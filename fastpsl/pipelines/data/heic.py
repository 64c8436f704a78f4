"""HEIC images, by the optional package pi-heif. Only this file imports it.

pi-heif only decodes: a wheel of 1.5 MB with libheif and libde265, both under the LGPL. pillow-heif writes,
too, in a wheel of 5.7 MB. It holds x265, whose GPL would bind those who pass it on with fastpsl.
"""

import functools
import importlib
from typing import BinaryIO

from PIL import Image

# The brands of HEVC images and sequences; source: ISO/IEC 23008-12, annex B.
_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_MAX_BRANDS_BYTES = 1 << 10


def is_heic(file: BinaryIO) -> bool:
    """Return whether a file says that it has an HEVC image."""
    file.seek(0)
    head = file.read(_MAX_BRANDS_BYTES)
    brands = head[8 : int.from_bytes(head[:4], "big")]
    return head[4:8] == b"ftyp" and any(brands[at : at + 4] in _BRANDS for at in range(0, len(brands), 4))


@functools.cache
def is_missing() -> bool:
    """Return whether the package is not installed, or does not load."""
    try:
        importlib.import_module("pi_heif")
    except ImportError:
        return True
    return False


def open_heic(file: BinaryIO) -> Image.Image:
    """Open a HEIC image as Pillow opens others: the pixels are decoded when they are asked for.

    They are upright by the file's boxes, and EXIF is of no account.
    """
    file.seek(0)
    image: Image.Image = importlib.import_module("pi_heif").HeifImageFile(file)
    return image
