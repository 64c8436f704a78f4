"""The orientation of an image file: one rule for all formats, and for all that reads them.

It is tag 0x0112 of the first directory of the file's EXIF data; a TIFF is such data itself. The tag holds one
number of the type BYTE, SHORT or LONG, 1 to 8, in the byte order of the data. Of a JPEG's Exif segments, the
first counts. Anything else is upright, and XMP is ignored.

AVIF and HEIC have boxes of their own instead (irot, imir). Pillow reports those of AVIF as the tag, in place
of the file's own one. pi-heif applies those of HEIC, and sets the tag to 1.
"""

import io
import struct
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from fastpsl.pipelines.interface.dataset import MAX_FILE_BYTES, UPRIGHT

TURNED = 5  # orientations from here on swap height and width
ORIENTATION_TAG = 0x0112
_START_OF_SCAN, _APP1, _EXIF = 0xDA, 0xE1, b"Exif\0\0"
_SHORT = 3
_NUMBERS = {1: "B", _SHORT: "H", 4: "I"}  # the types BYTE, SHORT and LONG
_MAX_ENTRIES = 65535  # BigTIFF has eight bytes for their number
# By its first bytes: the byte order, and the codes of a directory's offset, of the number of its entries, and
# of an entry.
_TIFF = {b"II*\0": ("<", "I", "H", "HHI4s"), b"MM\0*": (">", "I", "H", "HHI4s")}
_BIG_TIFF = {b"II+\0": ("<", "Q", "Q", "HHQ8s"), b"MM\0+": (">", "Q", "Q", "HHQ8s")}


class _Tag(NamedTuple):
    type: int
    num_values: int
    value: int  # the first one, where the type is among _NUMBERS


def jpeg_orientation(data: bytes) -> int:
    """Return the orientation of a JPEG, given up to its first scan at least."""
    segments, _ = _exif_segments(data)
    return tiff_orientation(io.BytesIO(segments[0])) if segments else UPRIGHT


def usual_jpeg_orientation(data: bytes) -> int | None:
    """Return the orientation of a JPEG; None where its header is not whole, or DALI may take another one.

    DALI 2.4 reads any type as SHORT, ignores a directory that lacks an entry, and does not know BigTIFF. Of
    several Exif segments it takes the last one that has the tag, or crashes.
    """
    segments, is_whole = _exif_segments(data)
    if not is_whole or len(segments) > 1:
        return None
    if not segments:
        return UPRIGHT
    tag, is_whole = _find_tag(io.BytesIO(segments[0]))
    if not is_whole or segments[0][:4] not in _TIFF or (tag and tag[:2] != (_SHORT, 1)):
        return None
    return _orientation(tag)


def _exif_segments(data: bytes) -> tuple[list[bytes], bool]:
    """Return the contents of a JPEG's Exif segments, and whether its markers lead to the first scan."""
    segments, offset = list[bytes](), 2
    while data[offset : offset + 1] == b"\xff" and offset + 4 <= len(data):
        marker = data[offset + 1]
        if marker == _START_OF_SCAN:
            return segments, True
        if marker == 0xFF:  # fill byte
            offset += 1
            continue
        end = offset + 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
        if marker == _APP1 and data[offset + 4 : offset + 4 + len(_EXIF)] == _EXIF:
            segments.append(data[offset + 4 + len(_EXIF) : end])
        offset = end
    return segments, False


def tiff_orientation(file: BinaryIO) -> int:
    """Return the orientation in the first directory of a TIFF, or of EXIF data, which are like one."""
    return _orientation(_find_tag(file)[0])


def _orientation(tag: _Tag | None) -> int:
    is_number = tag and tag.type in _NUMBERS and tag.num_values == 1
    return tag.value if tag and is_number and tag.value in range(1, 9) else UPRIGHT


def _find_tag(file: BinaryIO) -> tuple[_Tag | None, bool]:
    """Return the tag in a TIFF's first directory, if any, and whether the directory is whole.

    Source: TIFF 6.0, section 2, and Adobe's BigTIFF.
    """
    head = file.read(16)
    kind = _TIFF.get(head[:4]) or _BIG_TIFF.get(head[:4])
    if kind is None:
        return None, False
    order, offset, count, entry = kind
    try:
        (directory,) = struct.unpack_from(order + offset, head, struct.calcsize(offset))
        file.seek(min(directory, MAX_FILE_BYTES))
        (num,) = struct.unpack(order + count, file.read(struct.calcsize(count)))
    except struct.error:  # it ends early
        return None, False
    size = struct.calcsize(order + entry)
    entries = file.read(size * min(num, _MAX_ENTRIES))
    is_whole = len(entries) == size * num
    for at in range(0, len(entries) - size + 1, size):
        tag, type, num_values, field = struct.unpack_from(order + entry, entries, at)
        if tag == ORIENTATION_TAG:
            (value,) = struct.unpack_from(order + _NUMBERS.get(type, "B"), field)
            return _Tag(type, num_values, value), is_whole
    return None, is_whole


def exif_orientation(image: Image.Image) -> int:
    """Return the orientation of an image that Pillow has loaded, by the EXIF data that it keeps.

    It is upright for TIFFs, which Pillow turns as it loads them.
    """
    data = image.info.get("exif") or b""
    old = image.info.get("Raw profile type exif", "")  # in PNGs of ImageMagick: three lines, then digits
    if old and not data:
        with suppress(ValueError):
            data = bytes.fromhex("".join(old.split("\n")[3:]))
    return tiff_orientation(io.BytesIO(data.removeprefix(_EXIF)))


def pillow_orientation(image: Image.Image) -> int:
    """Return the orientation of a loaded image that a caller of Pillow gives.

    It is `exif_orientation`, unless the tag was set or deleted in `image.getexif()`.
    """
    stored = Image.Image()
    stored.info = image.info
    with suppress(Exception):  # Pillow's parser raises nearly anything on damaged EXIF data
        tag: Any = image.getexif().get(ORIENTATION_TAG)
        if tag != stored.getexif().get(ORIENTATION_TAG):
            return tag if tag in range(1, 9) else UPRIGHT
    return exif_orientation(image)


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an orientation.

    Orientations 2 to 8 are mirrored, 180, flipped, transposed, 90 right, transverse, 90 left.
    """
    if orientation >= TURNED:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image
