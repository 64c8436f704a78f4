"""Image files, damaged: each function is one kind of damage and gives the bytes and the ending of a file."""

import functools
import io
import random
import struct
import zlib

import numpy as np
from PIL import Image

from tests.pipelines.photos import photo

Random = random.Random
File = tuple[bytes, str]

_START_OF_SCAN = 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)
_PNG_START = b"\x89PNG\r\n\x1a\n"
# The largest picture that fastpsl's own limit lets through, nearly.
_BOMB_PX = 13_000


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@functools.cache
def sound_files() -> dict[str, File]:
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


def _some(random: Random, start: str = "") -> tuple[bytearray, str]:
    data, ending = sound_files()[random.choice([name for name in sound_files() if name.startswith(start)])]
    return bytearray(data), ending


def _segments(jpeg: bytes) -> list[tuple[int, int, int]]:
    """(marker, start, length with the marker) up to the scan's."""
    at, found = 2, []
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF:
        length = 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        found.append((jpeg[at + 1], at, length))
        if jpeg[at + 1] == _START_OF_SCAN:
            break
        at += length
    return found


def _frame(jpeg: bytes) -> int:
    return next(start for marker, start, _ in _segments(jpeg) if marker in _FRAMES)


def _sizes(random: Random) -> tuple[int, int]:
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
    return (_BOMB_PX, _BOMB_PX) if random.random() < 0.05 else random.choice(sizes)


def sound(random: Random) -> File:
    data, ending = _some(random)
    return bytes(data), ending


def other_ending(random: Random) -> File:
    return bytes(_some(random)[0]), random.choice([".jpg", ".png", ".webp", ".bmp", ".tif", ".ppm", ".JPG"])


def bits(random: Random) -> File:
    data, ending = _some(random)
    for _ in range(random.choice([1, 1, 4, 64])):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data), ending


def head_bits(random: Random) -> File:
    data, ending = _some(random)
    for _ in range(random.choice([1, 2, 8])):
        data[random.randrange(min(len(data), 200))] ^= 1 << random.randrange(8)
    return bytes(data), ending


def truncated(random: Random) -> File:
    data, ending = _some(random)
    return bytes(
        data[: random.choice([random.randrange(len(data)), len(data) - 1, random.randrange(64)])]
    ), ending


def grown(random: Random) -> File:
    data, ending = _some(random)
    ends = [bytes(100), random.randbytes(1000), bytes(data), b"\xff\xd9" * 50, b"<script>alert(1)</script>"]
    return bytes(data) + random.choice(ends), ending


def overwritten(random: Random) -> File:
    """A run of zeros, 0xff, markers or noise."""
    data, ending = _some(random)
    at, size = random.randrange(len(data)), random.randrange(1, 400)
    run = random.choice(
        [bytes(size), b"\xff" * size, random.randbytes(size), b"\xff\xd9" * size, b"\xff\xd0" * size]
    )
    data[at : at + size] = run[:size]
    return bytes(data), ending


def spliced(random: Random) -> File:
    """The beginning of one format, the rest of another."""
    data, ending = _some(random)
    other, _ = _some(random)
    at = random.randrange(len(data))
    return bytes(data[:at] + other[at:]), ending


def no_image(random: Random) -> File:
    contents = [
        b"",
        b"\xff",
        b"\xff\xd8",
        b"\xff\xd8\xff\xd9",
        b"<html>404</html>",
        bytes(500),
        random.randbytes(500),
    ]
    return random.choice(contents), random.choice([".jpg", ".png", ".tif", ".webp"])


def jpeg_segment(random: Random) -> File:
    """A segment removed, doubled, or with a length that lies."""
    data, ending = _some(random, "jpeg")
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
    data, ending = _some(random, "jpeg")
    at = _frame(data) + 5
    data[at : at + 4] = struct.pack(">HH", *_sizes(random))
    return bytes(data), ending


def jpeg_frame(random: Random) -> File:
    """Kind of frame, precision, number of components, or their sampling."""
    data, ending = _some(random, "jpeg")
    at = _frame(data)
    how = random.randrange(4)
    if how == 0:
        data[at + 1] = random.choice([0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCF])
    elif how == 1:
        data[at + 4] = random.choice([1, 7, 9, 12, 16, 255])
    elif how == 2:
        data[at + 9] = random.choice([0, 1, 2, 4, 5, 255])
    else:
        for i in range(data[at + 9]):
            data[at + 11 + 3 * i] = random.choice([0x11, 0x22, 0x44, 0x00, 0x14, 0x41, 0xFF, 0x21])
    return bytes(data), ending


def jpeg_exif(random: Random) -> File:
    data, ending = _some(random, "jpeg")
    turned = struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, random.randrange(12), 0, 0)
    bodies = [
        random.randbytes(random.randrange(200)), b"II*\0" + random.randbytes(40), b"MM\0*" + turned,
        b"II*\0" + struct.pack("<IH", 8, 65535), b"II*\0" + struct.pack("<I", 0xFFFFFFFF),
        b"II*\0" + struct.pack("<IHHHI", 8, 1, 0x112, 4, 2**31) + b"\6\0\0\0" + struct.pack("<I", 8),
    ]  # fmt: skip
    body = b"Exif\0\0" + random.choice(bodies)
    data[2:2] = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    return bytes(data), ending


def jpeg_marker(random: Random) -> File:
    """Restart intervals, tables and application data that mean nothing, before the scan."""
    data, ending = _some(random, "jpeg")
    markers = [
        b"\xff\xdd\0\4" + struct.pack(">H", random.choice([0, 1, 65535])), b"\xff\xc4\0\x13" + random.randbytes(17),
        b"\xff\xdb\0\x43\0" + bytes(64), b"\xff\xdc\0\4\0\x10", b"\xff\x01", b"\xff\xff\xff\xff", b"\xff\xcc\0\4\0\x10",
        b"\xff\xe2\0\x0eICC_PROFILE\0", b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([random.choice([0, 1, 2, 9])]),
    ]  # fmt: skip
    at = _segments(data)[-1][1]
    data[at:at] = random.choice(markers)
    return bytes(data), ending


def jpeg_many_scans(random: Random) -> File:
    """A progressive JPEG whose scans come again and again: little to read, much to do."""
    data = sound_files()["jpeg progressive"][0]
    scans = data[_segments(data)[-1][1] : -2]
    return data[:-2] + scans * random.choice([5, 60, 400]) + b"\xff\xd9", ".jpg"


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    at, found = len(_PNG_START), []
    while at + 8 <= len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        found.append((bytes(png[at + 4 : at + 8]), bytes(png[at + 8 : at + 8 + length])))
        at += 12 + length
    return found


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return _PNG_START + b"".join(_chunk(kind, body) for kind, body in chunks)


def png_head(random: Random) -> File:
    """Sizes, depth or colours that lie, under a good checksum."""
    data, ending = _some(random, "png")
    (_, head), *rest = _chunks(data)
    height, width = _sizes(random)
    size = struct.pack(">II", *random.choice([(width, height), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1)]))
    colours = bytes(
        [random.choice([1, 2, 4, 8, 16, 3]), random.choice([0, 2, 3, 4, 6, 7]), 0, 0, random.choice([0, 1])]
    )
    head = random.choice([size + head[8:], head[:8] + colours])
    return _png([(b"IHDR", head), *rest]), ending


def png_chunk(random: Random) -> File:
    """A chunk removed, doubled, emptied, moved, or with a length that lies."""
    data, ending = _some(random, "png")
    chunks = _chunks(data)
    here = random.randrange(len(chunks))
    how = random.randrange(5)
    if how == 0:
        del chunks[here]
    elif how == 1:
        chunks.insert(random.randrange(len(chunks)), chunks[here])
    elif how == 2:
        chunks[here] = (chunks[here][0], b"")
    elif how == 3:
        random.shuffle(chunks)
    else:
        at = random.randrange(8, len(data) - 4)
        data[at : at + 4] = struct.pack(">I", random.choice([0, 2**31 - 1, 2**31, 2**32 - 1]))
        return bytes(data), ending
    return _png(chunks), ending


def png_text_bomb(random: Random) -> File:
    """100 MB of text or colour profile in a few kB."""
    chunks = _chunks(sound_files()["png"][0])
    kind = random.choice([b"zTXt", b"iCCP", b"iTXt"])
    packed = zlib.compress(bytes(100 << 20), 1)
    body = b"x\0\1\0\0\0" + packed if kind == b"iTXt" else b"x\0\0" + packed
    return _png([chunks[0], (kind, body), *chunks[1:]]), ".png"


def tiff_tag(random: Random) -> File:
    """An entry of a TIFF's directory with another number: sizes, offsets, counts, compression."""
    data, ending = _some(random, "tiff")
    (directory,) = struct.unpack_from("<I", data, 4)
    (num,) = struct.unpack_from("<H", data, directory)
    entry = directory + 2 + 12 * random.randrange(num)
    numbers = [0, 1, 2, 7, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, len(data)]
    at, kind = random.choice([(2, "<H"), (4, "<I"), (8, "<I"), (8, "<I")])
    struct.pack_into(kind, data, entry + at, random.choice(numbers) % (1 << 8 * struct.calcsize(kind)))
    return bytes(data), ending


def other_size(random: Random) -> File:
    """BMP and PPM that tell of other sizes."""
    height, width = _sizes(random)
    if random.random() < 0.5:
        body = sound_files()["ppm"][0].partition(b"\n255\n")[2]
        head = random.choice([b"P6", b"P5", b"P4", b"P7", b"P3"]) + b"\n%d %d\n%d\n"
        return head % (width, height, random.choice([255, 65535, 1, 0, 10**20])) + body, ".ppm"
    data = bytearray(sound_files()["bmp"][0])
    struct.pack_into(
        "<ii", data, 18, random.choice([width, -width, 2**31 - 1]), random.choice([height, -height])
    )
    return bytes(data), ".bmp"


def bomb(random: Random) -> File:
    """A true picture that is far larger than its file: mostly 25 megapixels, at times the most that is let through."""
    if random.random() < 0.1:
        return large_png(30_000, 1, 0), ".png"  # more than is let through
    side = _BOMB_PX if random.random() < 0.1 else random.choice([2000, 5000])
    return large_png(side, *random.choice([(8, 0), (16, 0), (8, 6), (1, 0), (8, 2)])), ".png"


@functools.lru_cache(2)
def large_png(side: int, depth: int, colour: int) -> bytes:
    """Black pixels [side, side] of so many bits and of a colour type of PNG's."""
    row = bytes(1 + (side * {0: 1, 2: 3, 6: 4}[colour] * depth + 7) // 8)
    compressor, parts = zlib.compressobj(1), []
    for _ in range(side):
        parts.append(compressor.compress(row))
    parts.append(compressor.flush())
    head = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)
    return _png([(b"IHDR", head), (b"IDAT", b"".join(parts)), (b"IEND", b"")])


KINDS = (
    sound, other_ending, bits, head_bits, truncated, grown, overwritten, spliced, no_image, jpeg_segment, jpeg_size,
    jpeg_frame, jpeg_exif, jpeg_marker, jpeg_many_scans, png_head, png_chunk, png_text_bomb, tiff_tag, other_size, bomb,
)  # fmt: skip
