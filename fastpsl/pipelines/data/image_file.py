"""Image files of any kind to upright RGB, by Pillow; and the EXIF orientation of JPEGs.

- Alpha, also of palettes, is blended over white. 16-bit values are scaled by 255/65535 (three channels: the
high byte). Pillow converts palettes, grey and CMYK.
- Colour profiles are not applied. The first frame of animations and multi-page files is taken.
"""

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fastpsl.pipelines.data.dataset import MAX_FILE_BYTES, MAX_PIXELS, UPRIGHT
from fastpsl.pipelines.decoders.jpeg_scans import SCAN_REASONS, jpeg_scans

# The formats that Pillow may try. EPS is excluded, because it starts another program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
Image.init()  # load all plugins, because Image.open(formats=...) knows only loaded ones
TURNED = 5  # EXIF orientations from here on swap height and width
_ORIENTATION_TAG = 0x0112
_START_OF_SCAN, _APP1 = 0xDA, 0xE1  # JPEG markers
_WIDTH_TAG, _HEIGHT_TAG = 0x0100, 0x0101  # in TIFF
_BLOCK_BYTES = 1 << 20
# The pixels converted to RGB at a time, because a whole converted copy would take more memory.
_BAND_PIXELS = 1 << 20


class BrokenImage(Exception):
    """An error of one image that cannot be used; its message is the reason in the quarantine list."""


def check_bytes(num_bytes: int) -> None:
    """Raise BrokenImage for a file of more bytes than are read."""
    if num_bytes > MAX_FILE_BYTES:
        raise BrokenImage(f"{num_bytes:,} bytes; at most {MAX_FILE_BYTES:,} are taken")


def read_image_file(path: str | Path) -> bytes:
    """Return a file's bytes.

    Raises:
        BrokenImage: The file is too large; it is not read.
        OSError: The file cannot be read.
    """
    with open(path, "rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        check_bytes(num_bytes)
        return file.read(num_bytes)


def jpeg_orientation(data: bytes) -> int:
    """Return the EXIF orientation of a JPEG, given up to its frame header at least; 1 (upright) by default.

    As DALI does, it reads the tag in the first directory as a SHORT, whatever its type, and ignores XMP.
    """
    offset = 2
    while (
        data[offset : offset + 1] == b"\xff"
        and offset + 4 <= len(data)
        and data[offset + 1] != _START_OF_SCAN
    ):
        if data[offset + 1] == 0xFF:  # fill byte
            offset += 1
            continue
        end = offset + 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
        if data[offset + 1] == _APP1 and data[offset + 4 : offset + 10] == b"Exif\0\0":
            return _tiff_orientation(data[offset + 10 : end])
        offset = end
    return UPRIGHT


def _tiff_orientation(tiff: bytes) -> int:
    """Return the orientation in a TIFF header; source: TIFF 6.0, section 2."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return UPRIGHT
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (num,) = struct.unpack_from(f"{order}H", tiff, directory)
        for i in range(num):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * i)
            if tag == _ORIENTATION_TAG:
                return value if value in range(1, 9) else UPRIGHT
    except struct.error:  # truncated
        pass
    return UPRIGHT


def upright_size(path: str) -> tuple[int, int]:
    """Return (height, width) of what `decode_any` makes of a file, from its header alone.

    Raises:
        BrokenImage: The header cannot be read; the message says why.
    """
    with _reasons(), Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        if image.format == "TIFF":  # some versions of Pillow return the upright size
            width, height = int(image.tag_v2[_WIDTH_TAG]), int(image.tag_v2[_HEIGHT_TAG])  # type: ignore[attr-defined]
        check_pixels(height, width)
        # A PNG's orientation may follow its pixels, and Pillow would decode them to reach it.
        is_silent = image.format == "PNG" and not _mentions_orientation(path)
        is_turned = not is_silent and image.getexif().get(_ORIENTATION_TAG) in range(TURNED, 9)
    return (width, height) if is_turned else (height, width)


def _mentions_orientation(path: str) -> bool:
    end = b""
    with open(path, "rb") as file:
        while block := end + file.read(_BLOCK_BYTES):
            if any(word in block for word in (b"eXIf", b"type exif", b"adobe.xmp")):
                return True
            if len(block) <= len(end):
                break
            end = block[-len(b"type exif") :]
    return False


def check_pixels(height: int, width: int) -> None:
    """Raise BrokenImage for more pixels than are allowed."""
    if width * height > MAX_PIXELS:
        raise BrokenImage(f"{width} x {height} px are more than {MAX_PIXELS:,} pixels")


@contextmanager
def _reasons() -> Iterator[None]:
    """Turn errors of Pillow into BrokenImage with the reason in one line."""
    try:
        yield
    except BrokenImage:
        raise
    except Image.UnidentifiedImageError:
        raise BrokenImage(f"no image of a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # noqa: BLE001  Pillow's parsers raise nearly anything on damaged files
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BrokenImage(f"{type(error).__name__}: {' '.join(text.split())}") from None


def num_pixels(data: bytes) -> int:
    """Return the number of pixels of an image in any known format, from its header.

    Raises:
        BrokenImage: The header cannot be read, or the pixels are too many.
    """
    with _reasons(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        check_pixels(image.height, image.width)
        return image.height * image.width


def decode_any(data: bytes) -> np.ndarray:
    """Decode any known format by Pillow to upright RGB, uint8 [H, W, 3]."""
    with _reasons(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        check_pixels(image.height, image.width)
        scans = jpeg_scans(data) if data.startswith(b"\xff\xd8") else None
        if scans in SCAN_REASONS:
            raise BrokenImage(SCAN_REASONS[scans])
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        rgb = np.empty((image.height, image.width, 3), np.uint8)
        num_rows = max(1, _BAND_PIXELS // max(1, image.width))
        for top in range(0, image.height, num_rows):
            bottom = min(top + num_rows, image.height)
            rgb[top:bottom] = np.asarray(_rgb(image.crop((0, top, image.width, bottom))))
        return rgb


def _rgb(image: Image.Image) -> "Image.Image | np.ndarray":
    """Return the image as 8-bit RGB, or as grey [H, W, 1]; see the module's docstring."""
    if image.mode == "F":
        raise BrokenImage("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.size and not (0 <= values.min() and values.max() <= 65535):
            raise BrokenImage("32-bit integer pixels beyond 16 bits have no known range")
        return ((values * 255 + 32767) // 65535).astype(np.uint8)[:, :, None]
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert(
            "RGB"
        )
    return image.convert("RGB")


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation.

    Orientations 2 to 8 are mirrored, 180, flipped, transposed, 90 right, transverse, 90 left.
    """
    if orientation >= TURNED:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image
