"""PNGs with wrong chunks, or with far more content than their size suggests."""

import functools
import random
import struct
import zlib

from tests.faults.sound_images import LARGE_PX, File, lying_sizes, some_image, sound_images

Random = random.Random

_PNG_START = b"\x89PNG\r\n\x1a\n"


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _chunks(png: bytes | bytearray) -> list[tuple[bytes, bytes]]:
    offset, chunks = len(_PNG_START), []
    while offset + 8 <= len(png):
        length = int.from_bytes(png[offset : offset + 4], "big")
        chunks.append((bytes(png[offset + 4 : offset + 8]), bytes(png[offset + 8 : offset + 8 + length])))
        offset += 12 + length
    return chunks


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return _PNG_START + b"".join(_chunk(kind, body) for kind, body in chunks)


def png_head(random: Random) -> File:
    """Set a wrong size, depth or colour type, with a right checksum."""
    data, ending = some_image(random, "png")
    (_, head), *rest = _chunks(data)
    height, width = lying_sizes(random)
    size = struct.pack(">II", *random.choice([(width, height), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1)]))
    colours = bytes(
        [random.choice([1, 2, 4, 8, 16, 3]), random.choice([0, 2, 3, 4, 6, 7]), 0, 0, random.choice([0, 1])]
    )
    head = random.choice([size + head[8:], head[:8] + colours])
    return _png([(b"IHDR", head), *rest]), ending


def png_chunk(random: Random) -> File:
    """Remove, double, empty or move a chunk, or set a wrong length."""
    data, ending = some_image(random, "png")
    chunks = _chunks(data)
    index = random.randrange(len(chunks))
    how = random.randrange(5)
    if how == 0:
        del chunks[index]
    elif how == 1:
        chunks.insert(random.randrange(len(chunks)), chunks[index])
    elif how == 2:
        chunks[index] = (chunks[index][0], b"")
    elif how == 3:
        random.shuffle(chunks)
    else:
        offset = random.randrange(8, len(data) - 4)
        data[offset : offset + 4] = struct.pack(">I", random.choice([0, 2**31 - 1, 2**31, 2**32 - 1]))
        return bytes(data), ending
    return _png(chunks), ending


def png_text_bomb(random: Random) -> File:
    """Put 100 MB of text or colour profile into a few kB."""
    chunks = _chunks(sound_images()["png"][0])
    kind = random.choice([b"zTXt", b"iCCP", b"iTXt"])
    packed = _packed_zeros(100 << 20)
    body = b"x\0\1\0\0\0" + packed if kind == b"iTXt" else b"x\0\0" + packed
    return _png([chunks[0], (kind, body), *chunks[1:]]), ".png"


@functools.cache
def _packed_zeros(num_bytes: int) -> bytes:
    return zlib.compress(bytes(num_bytes), 1)


def bomb(random: Random) -> File:
    """Return a sound image far larger than its file: mostly 4 megapixels, at times 25 or nearly the limit."""
    if random.random() < 0.1:
        return large_png(30_000, 1, 0), ".png"  # above the limit
    side = random.choices([2000, 5000, LARGE_PX], [85, 13, 2])[0]
    return large_png(side, *random.choice([(8, 0), (16, 0), (8, 6), (1, 0), (8, 2)])), ".png"


@functools.lru_cache(4)
def large_png(side: int, depth: int, colour: int) -> bytes:
    """Return black pixels [side, side] of a bit depth and a colour type of PNG."""
    row = bytes(1 + (side * {0: 1, 2: 3, 6: 4}[colour] * depth + 7) // 8)
    compressor, parts = zlib.compressobj(1), []
    for _ in range(side):
        parts.append(compressor.compress(row))
    parts.append(compressor.flush())
    head = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)
    return _png([(b"IHDR", head), (b"IDAT", b"".join(parts)), (b"IEND", b"")])


KINDS = (png_head, png_chunk, png_text_bomb, bomb)
