"""Kinds of damage to image files: each function returns the bytes and the ending of a file."""

import random
import struct

from tests.faults import jpeg_mutants, png_mutants
from tests.faults.sound_images import File, lying_sizes, some_image, sound_images

Random = random.Random


def sound(random: Random) -> File:
    data, ending = some_image(random)
    return bytes(data), ending


def other_ending(random: Random) -> File:
    return bytes(some_image(random)[0]), random.choice(
        [".jpg", ".png", ".webp", ".bmp", ".tif", ".ppm", ".JPG"]
    )


def bits(random: Random) -> File:
    data, ending = some_image(random)
    for _ in range(random.choice([1, 1, 4, 64])):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data), ending


def head_bits(random: Random) -> File:
    data, ending = some_image(random)
    for _ in range(random.choice([1, 2, 8])):
        data[random.randrange(min(len(data), 200))] ^= 1 << random.randrange(8)
    return bytes(data), ending


def truncated(random: Random) -> File:
    data, ending = some_image(random)
    return bytes(
        data[: random.choice([random.randrange(len(data)), len(data) - 1, random.randrange(64)])]
    ), ending


def grown(random: Random) -> File:
    data, ending = some_image(random)
    ends = [bytes(100), random.randbytes(1000), bytes(data), b"\xff\xd9" * 50, b"<script>alert(1)</script>"]
    return bytes(data) + random.choice(ends), ending


def overwritten(random: Random) -> File:
    """Overwrite a run of bytes by zeros, 0xff, markers or noise."""
    data, ending = some_image(random)
    start, size = random.randrange(len(data)), random.randrange(1, 400)
    run = random.choice(
        [bytes(size), b"\xff" * size, random.randbytes(size), b"\xff\xd9" * size, b"\xff\xd0" * size]
    )
    data[start : start + size] = run[:size]
    return bytes(data), ending


def spliced(random: Random) -> File:
    """Join the beginning of one format and the rest of another."""
    data, ending = some_image(random)
    other, _ = some_image(random)
    start = random.randrange(len(data))
    return bytes(data[:start] + other[start:]), ending


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


def tiff_tag(random: Random) -> File:
    """Change a number in an entry of a TIFF's directory: sizes, offsets, counts, compression."""
    data, ending = some_image(random, "tiff")
    (directory,) = struct.unpack_from("<I", data, 4)
    (num,) = struct.unpack_from("<H", data, directory)
    entry = directory + 2 + 12 * random.randrange(num)
    numbers = [0, 1, 2, 7, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, len(data)]
    at, kind = random.choice([(2, "<H"), (4, "<I"), (8, "<I"), (8, "<I")])
    struct.pack_into(kind, data, entry + at, random.choice(numbers) % (1 << 8 * struct.calcsize(kind)))
    return bytes(data), ending


def other_size(random: Random) -> File:
    """Set other sizes in a BMP or PPM."""
    height, width = lying_sizes(random)
    if random.random() < 0.5:
        body = sound_images()["ppm"][0].partition(b"\n255\n")[2]
        head = random.choice([b"P6", b"P5", b"P4", b"P7", b"P3"]) + b"\n%d %d\n%d\n"
        return head % (width, height, random.choice([255, 65535, 1, 0, 10**20])) + body, ".ppm"
    data = bytearray(sound_images()["bmp"][0])
    struct.pack_into(
        "<ii", data, 18, random.choice([width, -width, 2**31 - 1]), random.choice([height, -height])
    )
    return bytes(data), ".bmp"


KINDS = (
    sound,
    other_ending,
    bits,
    head_bits,
    truncated,
    grown,
    overwritten,
    spliced,
    no_image,
    tiff_tag,
    other_size,
    *jpeg_mutants.KINDS,
    *png_mutants.KINDS,
)
