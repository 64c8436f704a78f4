"""A small photo in every format that is read, and in some that are not."""

import functools
import io
import random

import numpy as np
from PIL import Image

from tests.pipelines.photos import photo

File = tuple[bytes, str]  # the bytes and the ending

# The largest picture that fastpsl's own limit lets through, nearly.
LARGE_PX = 13_000


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@functools.cache
def sound_images() -> dict[str, File]:
    """A small photo in every format that is read, and in some that are not."""
    picture = Image.fromarray(photo(7, 72, 90))
    alpha = picture.copy()
    alpha.putalpha(picture.convert("L"))
    deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "jpeg": (_encoded(picture, "JPEG"), ".jpg"),
        "jpeg progressive": (_encoded(picture, "JPEG", progressive=True), ".jpg"),
        "jpeg restarts": (_encoded(picture, "JPEG", restart_marker_blocks=4), ".jpeg"),
        "jpeg grey": (_encoded(picture.convert("L"), "JPEG"), ".jpg"),
        "jpeg CMYK": (_encoded(picture.convert("CMYK"), "JPEG"), ".jpg"),
        "jpeg turned": (_encoded(picture, "JPEG", exif=exif), ".jpg"),
        "png": (_encoded(picture, "PNG"), ".png"),
        "png alpha": (_encoded(alpha, "PNG"), ".png"),
        "png 16 bit": (_encoded(deep, "PNG"), ".png"),
        "png palette": (_encoded(picture.quantize(16), "PNG", transparency=0), ".png"),
        "webp": (_encoded(picture, "WEBP"), ".webp"),
        "bmp": (_encoded(picture, "BMP"), ".bmp"),
        "tiff": (_encoded(picture, "TIFF", compression="tiff_lzw"), ".tif"),
        "tiff float": (_encoded(picture.convert("F"), "TIFF"), ".tiff"),
        "ppm": (_encoded(picture, "PPM"), ".ppm"),
        "gif": (_encoded(picture, "GIF"), ".jpg"),
        "ico": (_encoded(picture, "ICO"), ".png"),
        "pdf": (_encoded(picture, "PDF"), ".jpg"),
        "eps": (_encoded(picture, "EPS"), ".jpg"),
        "tga": (_encoded(picture, "TGA"), ".bmp"),
    }


def some_image(random: random.Random, start: str = "") -> tuple[bytearray, str]:
    """One of the sound files whose name begins so."""
    data, ending = sound_images()[random.choice([name for name in sound_images() if name.startswith(start)])]
    return bytearray(data), ending


def lying_sizes(random: random.Random) -> tuple[int, int]:
    """Height and width in px that the file does not have."""
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
