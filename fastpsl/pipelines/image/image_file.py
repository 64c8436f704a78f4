"""The one way from an image's bytes to upright RGB, by Pillow.

- Alpha, also of palettes, is blended over white. 16-bit values are scaled by 255/65535 (three channels: the
high byte), or by a range of values (depth.py). Pillow converts palettes, grey and CMYK.
- Colour profiles are not applied. The first frame of animations and multi-page files is taken.
- orientation.py has the rule of what is upright.

pi-heif only decodes: a wheel of 1.5 MB with libheif and libde265, both under the LGPL. pillow-heif writes,
too, in a wheel of 5.7 MB. It holds x265, whose GPL would bind those who pass it on with fastpsl.
"""

import functools
import importlib
import io
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile

from fastpsl.files.system_errors import is_of_the_system
from fastpsl.pipelines.data.dataset import MAX_FILE_BYTES, MAX_PIXELS, UPRIGHT, BadImage, open_file
from fastpsl.pipelines.data.reading import PLAIN, Reading
from fastpsl.pipelines.image.depth import Scale
from fastpsl.pipelines.image.jpeg import SCAN_REASONS, jpeg_scans
from fastpsl.pipelines.image.orientation import (
    ORIENTATION_TAG,
    TURNED,
    exif_orientation,
    jpeg_orientation,
    pillow_orientation,
    tiff_orientation,
    turn,
)

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


Image.init()  # load all plugins, because Image.open(formats=...) knows only loaded ones
# The formats that Pillow may try, if it has them. EPS is excluded, because it starts another program.
FORMATS = tuple(
    name
    for name in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "JPEG2000", "AVIF")
    if name in Image.OPEN
)
_WIDTH_TAG, _HEIGHT_TAG = 0x0100, 0x0101  # in TIFF
_BLOCK_BYTES = 1 << 20
_HEAD_BYTES = 16  # by which Pillow tells formats apart
# The pixels converted to RGB at a time, because a whole converted copy would take more memory.
_BAND_PIXELS = 1 << 20


def check_bytes(num_bytes: int) -> None:
    """Raise BadImage for a file of more bytes than are read."""
    if num_bytes > MAX_FILE_BYTES:
        raise BadImage(f"{num_bytes:,} bytes; at most {MAX_FILE_BYTES:,} are taken")


def read_image_file(path: str | Path) -> bytes:
    """Return a file's bytes."""
    with open(open_file(path), "rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        check_bytes(num_bytes)
        return file.read(num_bytes)


def upright_size(path: str, reading: Reading = PLAIN) -> tuple[int, int]:
    """Return (height, width) of what `decode_any` makes of a file, from its header alone."""
    with _reasons(), open(path, "rb") as file, _open(file) as image:
        width, height = image.size
        if image.format == "TIFF":  # some versions of Pillow return the upright size
            width, height = int(image.tag_v2[_WIDTH_TAG]), int(image.tag_v2[_HEIGHT_TAG])  # type: ignore[attr-defined]
        check_pixels(height, width)
        # A PNG's orientation may follow its pixels, and Pillow decodes them to reach it.
        if image.format == "PNG" and "exif" not in image.info and _mentions_exif(path):
            image.load()
        orientation = _orientation_in(file, image) or exif_orientation(image)
    return (width, height) if orientation >= TURNED else (height, width)


def _open(file: BinaryIO) -> Image.Image:
    """Open an image of any known format; nothing but its header is decoded."""
    if is_heic(file):
        if is_missing():
            raise BadImage('HEIC needs a package; pip install "fastpsl-vision[heic]" installs it')
        file.seek(0)
        # It is upright by the file's boxes, and EXIF is of no account.
        image: Image.Image = importlib.import_module("pi_heif").HeifImageFile(file)
        return image
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    for name in FORMATS:
        # Not Image.open, which refuses more than 179 megapixels, or as many as the user's program says.
        opens, accepts = Image.OPEN[name]
        answer = accepts is None or accepts(head)
        if answer and not isinstance(answer, str):  # a text says what is missing
            file.seek(0)
            with suppress(SyntaxError, IndexError, TypeError, struct.error):  # not of this format, after all
                return opens(file, "")
    raise Image.UnidentifiedImageError


def _orientation_in(file: BinaryIO, image: Image.Image) -> int | None:
    """Return the orientation of a JPEG or TIFF from its bytes, because Pillow has a rule of its own there."""
    if image.format not in ("JPEG", "MPO", "TIFF"):
        return None
    file.seek(0)
    return tiff_orientation(file) if image.format == "TIFF" else jpeg_orientation(file.read(MAX_FILE_BYTES))


def _mentions_exif(path: str) -> bool:
    end = b""
    with open(path, "rb") as file:
        while block := end + file.read(_BLOCK_BYTES):
            if any(word in block for word in (b"eXIf", b"type exif")):
                return True
            if len(block) <= len(end):
                break
            end = block[-len(b"type exif") :]
    return False


def check_pixels(height: int, width: int) -> None:
    """Raise BadImage for more pixels than are allowed."""
    if width * height > MAX_PIXELS:
        raise BadImage(
            f"{width} x {height} px are more than {MAX_PIXELS:,} pixels; shrink it, or cut it into tiles"
        )


@contextmanager
def _reasons() -> Iterator[None]:
    """Turn errors of Pillow into BadImage with the reason in one line, but not those of the system."""
    try:
        yield
    except (BadImage, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise BadImage(f"no image of a known format ({', '.join((*FORMATS, 'HEIC'))})") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno and is_of_the_system(error):
            raise
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadImage(f"{type(error).__name__}: {' '.join(text.split())}") from None


def num_pixels(data: bytes) -> int:
    """Return the number of pixels of an image in any known format, from its header."""
    with _reasons(), _open(io.BytesIO(data)) as image:
        check_pixels(image.height, image.width)
        return image.height * image.width


def decode_any(data: bytes, reading: Reading = PLAIN) -> np.ndarray:
    """Decode an image of any known format to upright RGB, uint8 [H, W, 3]."""
    return decode_deep(data, reading)[0]


def decode_deep(data: bytes, reading: Reading) -> tuple[np.ndarray, Scale]:
    """Decode as `decode_any`, and return what was seen of values of more than 8 bits, too."""
    scale = Scale(reading.range)
    rgb = _decoded(data, reading.bands, scale)
    assert rgb is not None
    return rgb, scale


def look_at_values(data: bytes, bands: tuple[int, ...] = ()) -> Scale:
    """Return what is seen of an image's values of more than 8 bits; one of 8 bits is not decoded."""
    scale = Scale((0, 1))  # with any range they are the file's own
    _decoded(data, bands, scale, only_deep=True)
    return scale


def _decoded(data: bytes, bands: tuple[int, ...], scale: Scale, only_deep: bool = False) -> np.ndarray | None:
    """Return an image as upright RGB; None for one of 8 bits where only deep ones are wanted."""
    with _reasons(), _open(io.BytesIO(data)) as image:
        _check_scans(data)
        orientation = _orientation_in(io.BytesIO(data), image)
        if image.format == "TIFF":  # Pillow would turn it, by a rule of its own
            image.getexif()[ORIENTATION_TAG] = UPRIGHT
        low = scale.prepare(image, data, lambda: _open(io.BytesIO(data)))
        if only_deep and not scale.is_deep:
            return None
        return _pixels(image, lambda image: orientation or exif_orientation(image), scale, low)


def _check_scans(data: bytes) -> None:
    scans = jpeg_scans(data) if data.startswith(b"\xff\xd8") else None
    if scans in SCAN_REASONS:
        raise BadImage(SCAN_REASONS[scans])


def convert_pillow(image: Image.Image, reading: Reading = PLAIN) -> np.ndarray:
    """Return an image of Pillow as upright RGB, uint8 [H, W, 3]."""
    scale, low = Scale(reading.range), None
    with _reasons():
        if isinstance(image, ImageFile.ImageFile) and image.tile:  # it is not loaded yet
            if image.format not in (*FORMATS, "MPO"):
                raise BadImage(f"{image.format} is not opened here; call the image's load() first")
            if image.fp:
                image.fp.seek(0)
                data = image.fp.read(MAX_FILE_BYTES)
                if image.format in ("JPEG", "MPO"):
                    _check_scans(data)
                low = scale.prepare(image, data, lambda: _frame(data, image.tell()))
        return _pixels(image, pillow_orientation, scale, low)


def _frame(data: bytes, number: int) -> Image.Image:
    image = _open(io.BytesIO(data))
    image.seek(number)
    return image


def _pixels(
    image: Image.Image,
    orientation_of: Callable[[Image.Image], int],
    scale: Scale,
    low: Image.Image | None,
) -> np.ndarray:
    check_pixels(image.height, image.width)
    transparency = _transparency(image)
    for each in (image,) if low is None else (image, low):
        if each.format == "TIFF":
            _make_room(each)
        each.load()
    if transparency is not None:
        image.info["transparency"] = transparency
    width, height = image.im.size  # a TIFF's image.size is the upright one in some versions of Pillow
    rgb = np.empty((height, width, 3), np.uint8)
    num_rows = max(1, _BAND_PIXELS // max(1, width))
    for top in range(0, height, num_rows):
        bottom = min(top + num_rows, height)
        rows = (0, top, width, bottom)
        rgb[top:bottom] = np.asarray(_rgb(image.crop(rows), scale, low and low.crop(rows)))
    return np.ascontiguousarray(turn(rgb, orientation_of(image)))


def _make_room(image: Any) -> None:
    """Make the memory for a TIFF, as Pillow would, but without its limit of pixels."""
    if image.tile and image._im is None:
        image.im = Image.core.new(image.mode, image._tile_size)


def _transparency(image: Image.Image) -> "int | tuple[int, ...] | None":
    """Return a PNG's transparent grey or colour, where Pillow scales the pixels to 8 bits and not this value.

    Only an image that is not loaded yet tells how many bits the file has.
    """
    value = image.info.get("transparency")
    if value is None or image.format != "PNG" or not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return None
    stored = image.tile[0].args
    if stored == "RGB;16B":
        return tuple(channel >> 8 for channel in value)
    return value * {"L;2": 85, "L;4": 17}[stored] if stored in ("L;2", "L;4") else None


def _rgb(image: Image.Image, scale: Scale, low: Image.Image | None) -> "Image.Image | np.ndarray":
    """Return the image as 8-bit RGB, or as grey [H, W, 1]; see the module's docstring."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        grey = scale.grey(values)
        if isinstance(clear := image.info.get("transparency"), int):
            grey[values == clear] = 255
        return grey[:, :, None]
    if scale.is_deep:
        image = scale.colours(image, low)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
