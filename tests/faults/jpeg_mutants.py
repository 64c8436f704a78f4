"""JPEGs with wrong markers, sizes or tables."""

import random
import struct

from tests.faults.sound_images import File, lying_sizes, some_image, sound_images

Random = random.Random

_START_OF_SCAN = 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)


def _segments(jpeg: bytes | bytearray) -> list[tuple[int, int, int]]:
    """Return (marker, start, length with the marker) of each segment up to the scan's."""
    offset, segments = 2, []
    while offset + 4 <= len(jpeg) and jpeg[offset] == 0xFF:
        length = 2 + int.from_bytes(jpeg[offset + 2 : offset + 4], "big")
        segments.append((jpeg[offset + 1], offset, length))
        if jpeg[offset + 1] == _START_OF_SCAN:
            break
        offset += length
    return segments


def _frame(jpeg: bytes | bytearray) -> int:
    return next(start for marker, start, _ in _segments(jpeg) if marker in _FRAMES)


def jpeg_segment(random: Random) -> File:
    """Remove or double a segment, or set a wrong length."""
    data, ending = some_image(random, "jpeg")
    segments = _segments(data)
    _, start, length = random.choice(segments)
    how = random.randrange(3)
    if how == 0:
        del data[start : start + length]
    elif how == 1:
        _, other, _ = random.choice(segments)
        data[other:other] = data[start : start + length]
    else:
        data[start + 2 : start + 4] = struct.pack(">H", random.choice([0, 1, 2, 3, 17, 100, 65535]))
    return bytes(data), ending


def jpeg_size(random: Random) -> File:
    data, ending = some_image(random, "jpeg")
    offset = _frame(data) + 5
    data[offset : offset + 4] = struct.pack(">HH", *lying_sizes(random))
    return bytes(data), ending


def jpeg_frame(random: Random) -> File:
    """Change the kind of frame, the precision, the number of components or their sampling."""
    data, ending = some_image(random, "jpeg")
    offset = _frame(data)
    how = random.randrange(4)
    if how == 0:
        data[offset + 1] = random.choice(
            [0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCF]
        )
    elif how == 1:
        data[offset + 4] = random.choice([1, 7, 9, 12, 16, 255])
    elif how == 2:
        data[offset + 9] = random.choice([0, 1, 2, 4, 5, 255])
    else:
        for i in range(data[offset + 9]):
            data[offset + 11 + 3 * i] = random.choice([0x11, 0x22, 0x44, 0x00, 0x14, 0x41, 0xFF, 0x21])
    return bytes(data), ending


def jpeg_exif(random: Random) -> File:
    data, ending = some_image(random, "jpeg")
    directory = struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, random.randrange(12), 0, 0)
    bodies = [
        random.randbytes(random.randrange(200)), b"II*\0" + random.randbytes(40), b"MM\0*" + directory,
        b"II*\0" + struct.pack("<IH", 8, 65535), b"II*\0" + struct.pack("<I", 0xFFFFFFFF),
        b"II*\0" + struct.pack("<IHHHI", 8, 1, 0x112, 4, 2**31) + b"\6\0\0\0" + struct.pack("<I", 8),
    ]  # fmt: skip
    body = b"Exif\0\0" + random.choice(bodies)
    data[2:2] = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    return bytes(data), ending


def jpeg_marker(random: Random) -> File:
    """Insert senseless restart intervals, tables or application data before the scan."""
    data, ending = some_image(random, "jpeg")
    markers = [
        b"\xff\xdd\0\4" + struct.pack(">H", random.choice([0, 1, 65535])),
        b"\xff\xc4\0\x13" + random.randbytes(17),
        b"\xff\xdb\0\x43\0" + bytes(64), b"\xff\xdc\0\4\0\x10", b"\xff\x01", b"\xff\xff\xff\xff",
        b"\xff\xcc\0\4\0\x10",
        b"\xff\xe2\0\x0eICC_PROFILE\0",
        b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([random.choice([0, 1, 2, 9])]),
    ]  # fmt: skip
    offset = _segments(data)[-1][1]
    data[offset:offset] = random.choice(markers)
    return bytes(data), ending


def jpeg_many_scans(random: Random) -> File:
    """Repeat the scans of a progressive JPEG: few bytes, much work."""
    data = sound_images()["jpeg progressive"][0]
    scans = data[_segments(data)[-1][1] : -2]
    return data[:-2] + scans * random.choice([5, 60, 400]) + b"\xff\xd9", ".jpg"


KINDS = (jpeg_segment, jpeg_size, jpeg_frame, jpeg_exif, jpeg_marker, jpeg_many_scans)
