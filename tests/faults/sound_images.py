"""A small photo in every format that is read, and in some that are not."""

import functools
import io
import random

import numpy as np
from PIL import Image

from tests.pipelines.photos import photo

File = tuple[bytes, str]  # the bytes and the ending

# The side of nearly the largest image within fastpsl's limit.
LARGE_PX = 13_000


def _encode(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@functools.cache
def sound_images() -> dict[str, File]:
    """Return a small photo in every format that is read, and in some that are not."""
    image = Image.fromarray(photo(7, 72, 90))
    alpha = image.copy()
    alpha.putalpha(image.convert("L"))
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "jpeg": (_encode(image, "JPEG"), ".jpg"),
        "jpeg progressive": (_encode(image, "JPEG", progressive=True), ".jpg"),
        "jpeg restarts": (_encode(image, "JPEG", restart_marker_blocks=4), ".jpeg"),
        "jpeg grey": (_encode(image.convert("L"), "JPEG"), ".jpg"),
        "jpeg CMYK": (_encode(image.convert("CMYK"), "JPEG"), ".jpg"),
        "jpeg turned": (_encode(image, "JPEG", exif=exif), ".jpg"),
        "png": (_encode(image, "PNG"), ".png"),
        "png alpha": (_encode(alpha, "PNG"), ".png"),
        "png 16 bit": (_encode(deep, "PNG"), ".png"),
        "png palette": (_encode(image.quantize(16), "PNG", transparency=0), ".png"),
        "webp": (_encode(image, "WEBP"), ".webp"),
        "bmp": (_encode(image, "BMP"), ".bmp"),
        "tiff": (_encode(image, "TIFF", compression="tiff_lzw"), ".tif"),
        "tiff float": (_encode(image.convert("F"), "TIFF"), ".tiff"),
        "ppm": (_encode(image, "PPM"), ".ppm"),
        "gif": (_encode(image, "GIF"), ".gif"),
        "avif": (_encode(image, "AVIF"), ".avif"),
        "jpeg 2000": (_encode(image, "JPEG2000"), ".jp2"),
        "ico": (_encode(image, "ICO"), ".png"),
        "pdf": (_encode(image, "PDF"), ".jpg"),
        "eps": (_encode(image, "EPS"), ".jpg"),
        "tga": (_encode(image, "TGA"), ".bmp"),
    }


def some_image(random: random.Random, start: str = "") -> tuple[bytearray, str]:
    """Return one of the sound files with a name that begins with `start`."""
    data, ending = sound_images()[random.choice([name for name in sound_images() if name.startswith(start)])]
    return bytearray(data), ending


def lying_sizes(random: random.Random) -> tuple[int, int]:
    """Return a height and a width in px that the file does not have."""
    sizes = [
        (65535, 65535),
        (65535, 1),
        (1, 65535),
        (0, 10),
        (10, 0),
        (30000, 30000),
        (3000, 3000),
        (1, 1),
        (91, 71),
    ]
    return (LARGE_PX, LARGE_PX) if random.random() < 0.02 else random.choice(sizes)
