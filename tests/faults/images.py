"""Damaged images and odd files beside sound ones: written to a beton, and read as a folder by every decoder.

The sound ones must be read as ever. The damaged one must be reported with its name and a reason, or be read
as an image. What is written must be sound for `fastpsl data verify`. Lists and messages must hold no control
character.
"""

import csv
import functools
import io
import os
import shutil
import socket
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from fastpsl.commands.data import Write
from fastpsl.pipelines.beton.large_images import BYTES_PER_PIXEL
from fastpsl.pipelines.beton.left_out import quarantine_path
from fastpsl.pipelines.data.dataset import MAX_FILE_BYTES
from fastpsl.pipelines.data.image_file import MAX_PIXELS
from tests.faults.child import Case, Jury, Limits, refusal
from tests.faults.readings import CONTROL, CommandOutput, command, flip, read, verify
from tests.faults.report import Finding, Outcome
from tests.pipelines.photos import DECODERS, jpeg, photo

File = tuple[bytes, str]  # the bytes and the ending
Edit = Callable[[bytearray, Random], bytes | None]  # changes the bytes in place, or returns others

# The most memory of one image and its file. The results show that most take a hundredth.
_MOST_BYTES = BYTES_PER_PIXEL * MAX_PIXELS + MAX_FILE_BYTES
LIMITS = Limits(wall_s=400.0, cpu_s=120, resident_bytes=_MOST_BYTES, address_bytes=24 << 30)
_NUM_SOUND = 4
_ODD_EVERY = 10  # one case in ten has an entry that is no image file
LARGE_PX = 13_000  # the side of nearly the largest image within fastpsl's limit

# Sound images.


def _encode(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@functools.cache
def sound_images() -> dict[str, File]:
    """Return a small photo in every format that is read, and in some that are not."""
    image = Image.fromarray(photo(7, 72, 90))
    grey = image.convert("L")
    alpha = image.copy()
    alpha.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "jpeg": (_encode(image, "JPEG"), ".jpg"),
        "jpeg progressive": (_encode(image, "JPEG", progressive=True), ".jpg"),
        "jpeg restarts": (_encode(image, "JPEG", restart_marker_blocks=4), ".jpeg"),
        "jpeg grey": (_encode(grey, "JPEG"), ".jpg"),
        "jpeg CMYK": (_encode(image.convert("CMYK"), "JPEG"), ".jpg"),
        "jpeg turned": (_encode(image, "JPEG", exif=exif), ".jpg"),
        "png": (_encode(image, "PNG"), ".png"),
        "png alpha": (_encode(alpha, "PNG"), ".png"),
        "png 16 bit": (_encode(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), "PNG"), ".png"),
        "png palette": (_encode(image.quantize(16), "PNG", transparency=0), ".png"),
        "webp": (_encode(image, "WEBP"), ".webp"),
        "bmp": (_encode(image, "BMP"), ".bmp"),
        "tiff": (_encode(image, "TIFF", compression="tiff_lzw"), ".tif"),
        "tiff float": (_encode(image.convert("F"), "TIFF"), ".tiff"),
        "ppm": (_encode(image, "PPM"), ".ppm"),
        "gif": (_encode(image, "GIF"), ".gif"),
        "avif": (_encode(image, "AVIF"), ".avif"),
        "JPEG 2000": (_encode(image, "JPEG2000"), ".jp2"),
        "ico": (_encode(image, "ICO"), ".png"),
        "pdf": (_encode(image, "PDF"), ".jpg"),
        "eps": (_encode(image, "EPS"), ".jpg"),
        "tga": (_encode(image, "TGA"), ".bmp"),
    }


def _some_image(random: Random, start: str = "") -> tuple[bytearray, str]:
    """Return one of the sound files with a name that begins with `start`."""
    data, ending = sound_images()[random.choice([name for name in sound_images() if name.startswith(start)])]
    return bytearray(data), ending


def _lying_sizes(random: Random) -> tuple[int, int]:
    """Return a height and a width in px that the file does not have."""
    sizes = [(65535, 65535), (65535, 1), (1, 65535), (0, 10), (10, 0), (30000, 30000), (3000, 3000)]
    return (LARGE_PX, LARGE_PX) if random.random() < 0.02 else random.choice([*sizes, (1, 1), (91, 71)])


# Damage to any format.


def _on(edit: Edit, start: str = "") -> Callable[[Random], File]:
    """Return a maker that edits one of the sound files with a name that begins with `start`."""

    def make(random: Random) -> File:
        data, ending = _some_image(random, start)
        changed = edit(data, random)
        return bytes(data if changed is None else changed), ending

    return make


def _truncated(data: bytearray, random: Random) -> bytes:
    return data[: random.choice([random.randrange(len(data)), len(data) - 1, random.randrange(64)])]


def _grown(data: bytearray, random: Random) -> bytes:
    ends = [bytes(100), random.randbytes(1000), bytes(data), b"\xff\xd9" * 50, b"<script>alert(1)</script>"]
    return data + random.choice(ends)


def _overwritten(data: bytearray, random: Random) -> None:
    """Overwrite a run of bytes by zeros, 0xff, markers or noise."""
    start, size = random.randrange(len(data)), random.randrange(1, 400)
    runs = [bytes(size), b"\xff" * size, random.randbytes(size), b"\xff\xd9" * size, b"\xff\xd0" * size]
    data[start : start + size] = random.choice(runs)[:size]


def _spliced(data: bytearray, random: Random) -> bytes:
    """Join the beginning of one format and the rest of another."""
    other, _ = _some_image(random)
    start = random.randrange(len(data))
    return data[:start] + other[start:]


def _other_ending(random: Random) -> File:
    endings = [".jpg", ".png", ".webp", ".bmp", ".tif", ".ppm", ".JPG"]
    return bytes(_some_image(random)[0]), random.choice(endings)


def _no_image(random: Random) -> File:
    texts = [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"<html>404</html>", bytes(500)]
    return random.choice([*texts, random.randbytes(500)]), random.choice([".jpg", ".png", ".tif", ".webp"])


def _tiff_tag(data: bytearray, random: Random) -> None:
    """Change a number in an entry of a TIFF's directory: sizes, offsets, counts, compression."""
    (directory,) = struct.unpack_from("<I", data, 4)
    (num,) = struct.unpack_from("<H", data, directory)
    entry = directory + 2 + 12 * random.randrange(num)
    numbers = [0, 1, 2, 7, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, len(data)]
    at, kind = random.choice([(2, "<H"), (4, "<I"), (8, "<I"), (8, "<I")])
    struct.pack_into(kind, data, entry + at, random.choice(numbers) % (1 << 8 * struct.calcsize(kind)))


def _other_size(random: Random) -> File:
    """Set other sizes in a BMP or PPM."""
    height, width = _lying_sizes(random)
    if random.random() < 0.5:
        body = sound_images()["ppm"][0].partition(b"\n255\n")[2]
        head = random.choice([b"P6", b"P5", b"P4", b"P7", b"P3"]) + b"\n%d %d\n%d\n"
        return head % (width, height, random.choice([255, 65535, 1, 0, 10**20])) + body, ".ppm"
    data = bytearray(sound_images()["bmp"][0])
    sides = random.choice([width, -width, 2**31 - 1]), random.choice([height, -height])
    struct.pack_into("<ii", data, 18, *sides)
    return bytes(data), ".bmp"


# JPEGs with wrong markers, sizes or tables.

_START_OF_SCAN, _FRAMES = 0xDA, (0xC0, 0xC1, 0xC2)
_OTHER_FRAMES = [*_FRAMES, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCF]


def _segments(data: bytes | bytearray) -> list[tuple[int, int, int]]:
    """Return (marker, start, length with the marker) of each segment up to the scan's."""
    at, segments = 2, []
    while at + 4 <= len(data) and data[at] == 0xFF:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append((data[at + 1], at, length))
        if data[at + 1] == _START_OF_SCAN:
            break
        at += length
    return segments


def _frame(data: bytearray) -> int:
    return next(start for marker, start, _ in _segments(data) if marker in _FRAMES)


def _jpeg_segment(data: bytearray, random: Random) -> None:
    """Remove or double a segment, or set a wrong length."""
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


def _jpeg_size(data: bytearray, random: Random) -> None:
    struct.pack_into(">HH", data, _frame(data) + 5, *_lying_sizes(random))


def _jpeg_frame(data: bytearray, random: Random) -> None:
    """Change the kind of frame, the precision, the number of components or their sampling."""
    at = _frame(data)
    how = random.randrange(4)
    if how < 3:
        values = (_OTHER_FRAMES, [1, 7, 9, 12, 16, 255], [0, 1, 2, 4, 5, 255])[how]
        data[at + (1, 4, 9)[how]] = random.choice(values)
        return
    for i in range(data[at + 9]):
        data[at + 11 + 3 * i] = random.choice([0x11, 0x22, 0x44, 0x00, 0x14, 0x41, 0xFF, 0x21])


def _jpeg_exif(data: bytearray, random: Random) -> None:
    directory = struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, random.randrange(12), 0, 0)
    bodies = [
        random.randbytes(random.randrange(200)), b"II*\0" + random.randbytes(40), b"MM\0*" + directory,
        b"II*\0" + struct.pack("<IH", 8, 65535), b"II*\0" + struct.pack("<I", 0xFFFFFFFF),
        b"II*\0" + struct.pack("<IHHHI", 8, 1, 0x112, 4, 2**31) + b"\6\0\0\0" + struct.pack("<I", 8),
    ]  # fmt: skip
    body = b"Exif\0\0" + random.choice(bodies)
    data[2:2] = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def _jpeg_marker(data: bytearray, random: Random) -> None:
    """Insert senseless restart intervals, tables or application data before the scan."""
    markers = [
        b"\xff\xdd\0\4" + struct.pack(">H", random.choice([0, 1, 65535])),
        b"\xff\xc4\0\x13" + random.randbytes(17),
        b"\xff\xdb\0\x43\0" + bytes(64), b"\xff\xdc\0\4\0\x10", b"\xff\x01", b"\xff\xff\xff\xff",
        b"\xff\xcc\0\4\0\x10", b"\xff\xe2\0\x0eICC_PROFILE\0",
        b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([random.choice([0, 1, 2, 9])]),
    ]  # fmt: skip
    at = _segments(data)[-1][1]
    data[at:at] = random.choice(markers)


def _jpeg_many_scans(random: Random) -> File:
    """Repeat the scans of a progressive JPEG: few bytes, much work."""
    data = sound_images()["jpeg progressive"][0]
    scans = data[_segments(data)[-1][1] : -2]
    return data[:-2] + scans * random.choice([5, 60, 400]) + b"\xff\xd9", ".jpg"


# PNGs with wrong chunks, or with far more content than their size suggests.

_PNG_START = b"\x89PNG\r\n\x1a\n"
_Chunks = list[tuple[bytes, bytes]]


def _chunks(data: bytes | bytearray) -> _Chunks:
    at, chunks = len(_PNG_START), []
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((bytes(data[at + 4 : at + 8]), bytes(data[at + 8 : at + 8 + length])))
        at += 12 + length
    return chunks


def _png(chunks: _Chunks) -> bytes:
    """Return the file of these chunks, with right lengths and checksums."""
    parts = [(struct.pack(">I", len(body)), kind + body) for kind, body in chunks]
    return _PNG_START + b"".join(size + part + struct.pack(">I", zlib.crc32(part)) for size, part in parts)


def _png_head(data: bytearray, random: Random) -> bytes:
    """Set a wrong size, depth or colour type, with a right checksum."""
    (_, head), *rest = _chunks(data)
    height, width = _lying_sizes(random)
    size = struct.pack(">II", *random.choice([(width, height), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1)]))
    depth, colour = random.choice([1, 2, 4, 8, 16, 3]), random.choice([0, 2, 3, 4, 6, 7])
    colours = bytes([depth, colour, 0, 0, random.choice([0, 1])])
    return _png([(b"IHDR", random.choice([size + head[8:], head[:8] + colours])), *rest])


def _png_chunk(data: bytearray, random: Random) -> bytes | None:
    """Remove, double, empty or move a chunk, or set a wrong length."""
    chunks = _chunks(data)
    index = random.randrange(len(chunks))
    match random.randrange(5):
        case 0:
            del chunks[index]
        case 1:
            chunks.insert(random.randrange(len(chunks)), chunks[index])
        case 2:
            chunks[index] = (chunks[index][0], b"")
        case 3:
            random.shuffle(chunks)
        case _:
            at = random.randrange(8, len(data) - 4)
            struct.pack_into(">I", data, at, random.choice([0, 2**31 - 1, 2**31, 2**32 - 1]))
            return None
    return _png(chunks)


def _png_text_bomb(random: Random) -> File:
    """Put 100 MB of text or colour profile into a few kB."""
    chunks = _chunks(sound_images()["png"][0])
    kind = random.choice([b"zTXt", b"iCCP", b"iTXt"])
    body = (b"x\0\1\0\0\0" if kind == b"iTXt" else b"x\0\0") + _packed_zeros(100 << 20)
    return _png([chunks[0], (kind, body), *chunks[1:]]), ".png"


@functools.cache
def _packed_zeros(num_bytes: int) -> bytes:
    return zlib.compress(bytes(num_bytes), 1)


def _bomb(random: Random) -> File:
    """Return a sound image far larger than its file: mostly 4 megapixels, at times 25 or nearly the limit."""
    if random.random() < 0.1:
        return _large_png(30_000, 1, 0), ".png"  # above the limit
    side = random.choices([2000, 5000, LARGE_PX], [85, 13, 2])[0]
    return _large_png(side, *random.choice([(8, 0), (16, 0), (8, 6), (1, 0), (8, 2)])), ".png"


@functools.lru_cache(4)
def _large_png(side: int, depth: int, colour: int) -> bytes:
    """Return black pixels [side, side] of a bit depth and a colour type of PNG."""
    row = bytes(1 + (side * {0: 1, 2: 3, 6: 4}[colour] * depth + 7) // 8)
    compressor = zlib.compressobj(1)
    pixels = b"".join([*(compressor.compress(row) for _ in range(side)), compressor.flush()])
    head = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)
    return _png([(b"IHDR", head), (b"IDAT", pixels), (b"IEND", b"")])


MUTANTS: dict[str, Callable[[Random], File]] = {
    "sound": _on(lambda data, random: None),
    "other_ending": _other_ending,
    "bits": _on(lambda data, random: flip(data, random, [1, 1, 4, 64])),
    "head_bits": _on(lambda data, random: flip(data, random, [1, 2, 8], 0, min(len(data), 200))),
    "truncated": _on(_truncated),
    "grown": _on(_grown),
    "overwritten": _on(_overwritten),
    "spliced": _on(_spliced),
    "no_image": _no_image,
    "tiff_tag": _on(_tiff_tag, "tiff"),
    "other_size": _other_size,
    "jpeg_segment": _on(_jpeg_segment, "jpeg"),
    "jpeg_size": _on(_jpeg_size, "jpeg"),
    "jpeg_frame": _on(_jpeg_frame, "jpeg"),
    "jpeg_exif": _on(_jpeg_exif, "jpeg"),
    "jpeg_marker": _on(_jpeg_marker, "jpeg"),
    "jpeg_many_scans": _jpeg_many_scans,
    "png_head": _on(_png_head, "png"),
    "png_chunk": _on(_png_chunk, "png"),
    "png_text_bomb": _png_text_bomb,
    "bomb": _bomb,
}

# Odd file names, and entries of a folder that are no files or no images.

# Names without the ending, for sound and broken files. They are bytes, as in a file system.
NAMES = [
    b"mutant", "ünï 中文 😀".encode(), b"new\nline", b"latin\xe9", b"\x1b[31mred\x1b]0;title\x07",
    b'tab\tquote"comma,', b"=HYPERLINK(1)", b"@SUM(1)", b" lead", b"-rf", b"*?[x]", b"%s{0}", b"a" * 250,
    "\u202egpj".encode(), b"\rreturn", b"\x9b31m", "\u009b31m".encode(), b"back\\slash\\n",
    b"<script>alert(1)<", b"'; drop", b"\x7f", b"..", b"%00",
]  # fmt: skip
_DEVICES = ["/dev/zero", "/dev/null", "/dev/random", "/dev/tty"]
# Files that are regular by their mode, but have no size or no end, or are no images.
_OF_THE_SYSTEM = ["/etc/passwd", "/proc/self/mem", "/proc/self/maps", "/proc/self/pagemap", "/proc/kallsyms"]


def _link(targets: Sequence[str]) -> Callable[[Path, Random], None]:
    def make(path: Path, random: Random) -> None:
        path.symlink_to(targets[0] if len(targets) == 1 else random.choice(targets))

    return make


def _circle_of_links(path: Path, random: Random) -> None:
    path.symlink_to("other.jpg")
    path.with_name("other.jpg").symlink_to(path.name)


def _folder_named_as_image(path: Path, random: Random) -> None:
    path.mkdir()
    (path / "in.jpg").write_bytes(sound_images()["jpeg"][0])


def _unix_socket(path: Path, random: Random) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        server.bind(f"/proc/self/fd/{descriptor}/{path.name}")  # because its path is limited to 107 bytes
        os.close(descriptor)


def _sparse(path: Path, random: Random) -> None:
    """Write a sparse file of 40 GB that begins like an image."""
    head, ending = sound_images()[random.choice(["jpeg", "png", "tiff", "bmp", "webp", "ppm"])]
    with open(path.with_suffix(ending), "wb") as file:
        file.write(head[: random.choice([4, 200, len(head)])])
        file.truncate(40 << 30)


def _no_rights(path: Path, random: Random) -> None:
    path.write_bytes(sound_images()["jpeg"][0])
    path.chmod(0)


def _deep_folders(path: Path, random: Random) -> None:
    """Write an image below 1,200 folders, beyond Python's recursion limit and the longest path."""
    current = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=current)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=current)
        os.close(current)
        current = below
    file = os.open("in.jpg", os.O_WRONLY | os.O_CREAT, dir_fd=current)
    os.write(file, sound_images()["jpeg"][0])
    os.close(file)
    os.close(current)


ODD: dict[str, Callable[[Path, Random], object]] = {
    "dangling_link": _link(["/nonexistent/picture.jpg"]),
    "circle_of_links": _circle_of_links,
    "link_to_itself": _link(["odd.jpg"]),
    "link_to_a_device": _link(_DEVICES),
    "link_to_the_system": _link(_OF_THE_SYSTEM),
    "link_to_a_folder": _link(["..", "/etc/fonts", "."]),
    "folder_named_as_image": _folder_named_as_image,
    "pipe": lambda path, random: os.mkfifo(path),
    "unix_socket": _unix_socket,
    "sparse": _sparse,
    "no_rights": _no_rights,
    "deep_folders": _deep_folders,
}

# The harness.


def case_of(seed: int) -> Case:
    if seed % _ODD_EVERY == _ODD_EVERY - 1:
        return Case(seed, list(ODD)[seed // _ODD_EVERY % len(ODD)])
    return Case(seed, list(MUTANTS)[seed % len(MUTANTS)])


def images(folder: Path, seed: int, count: int) -> Iterator[Finding]:
    """Yield the findings of the cases `seed` to `seed + count - 1`."""
    subject = _Subject(folder)
    jury = Jury(subject.judge, folder / "log", LIMITS, subject.read_sound)
    yield from jury.findings([case_of(seed + i) for i in range(count)])


class _Subject:
    """A folder of two classes: the sound images, then the damaged one, so that it comes last."""

    def __init__(self, folder: Path):
        self.root, self.odd = folder / "images", folder / "images" / "z"
        self.out, self.cache = folder / "out.beton", folder / "cache"
        (self.root / "a").mkdir(parents=True)
        self.odd.mkdir()
        for i in range(_NUM_SOUND):
            (self.root / "a" / f"{i}.jpg").write_bytes(jpeg(photo(i, 50 + i, 64 - i)))
        self.expected: dict[str, tuple[str, ...]] = {}

    def read_sound(self) -> None:
        """Store the digests of the sound images in each child, which also warms the decoders."""
        os.environ["XDG_CACHE_HOME"] = str(self.cache)
        _empty(self.odd)
        assert self._write().error is None
        for decoder in DECODERS:
            self.expected[decoder] = read(self._read_by(decoder), decoder).digests

    def judge(self, case: Case) -> Outcome:
        """Put the damaged file alone into the second class, then write and read."""
        _empty(self.odd)
        choices = Random(case.seed)
        if case.name in ODD:
            ODD[case.name](self.odd / "odd.jpg", choices)
        else:
            data, ending = MUTANTS[case.name](choices)
            name = choices.choice(NAMES) if choices.random() < 0.3 else b"mutant"
            with open(os.path.join(os.fsencode(self.odd), name + ending.encode()), "wb") as file:
                file.write(data)
        return self._judge_writing() or self._judge_reading() or self._outcome()

    def _read_by(self, decoder: str) -> Path:
        """Return the beton for turbo and ffcv, which read nothing else, and the folder for other decoders."""
        return self.out if decoder in ("turbo", "ffcv") else self.root

    def _write(self) -> CommandOutput:
        return command(Write(str(self.root), str(self.out), max_bad="2", workers=1, overwrite=True))

    def _judge_writing(self) -> Outcome | None:
        result = self._write()
        if CONTROL.search(result.text):
            return "escaped", f"write: {result.text!r}"
        if result.error:
            return refusal(result.error, self.root.name, self.out.name)
        if fault := verify(self.out).error:
            return "differs", f"what was written is not sound: {fault}"
        if rows := self._quarantine_rows():
            if any(len(row) != 2 for row in rows) or rows[0] != ["path", "reason"] or len(rows) > 3:
                return "escaped", f"{quarantine_path(self.out).name} falls apart: {rows}"
            if any(CONTROL.search(row[1]) or not row[1] for row in rows):
                return "unclear", f"reasons: {rows}"
        return None

    def _quarantine_rows(self) -> list[list[str]]:
        path = quarantine_path(self.out)
        if not path.exists():
            return []
        with open(path, newline="", errors="surrogateescape") as file:
            return list(csv.reader(file))

    def _judge_reading(self) -> Outcome | None:
        for decoder in DECODERS:
            path = self._read_by(decoder)
            try:
                reading = read(path, decoder, on_bad_sample="skip")
            except Exception as error:  # noqa: BLE001 - any exception is a finding
                outcome, detail = refusal(error, path.name)
                return outcome, f"{decoder}: {detail}"
            if reading.digests[:_NUM_SOUND] != self.expected[decoder][:_NUM_SOUND]:
                return "silent", f"{decoder}: sound pictures beside it are read differently"
        return None

    def _outcome(self) -> Outcome:
        rows = self._quarantine_rows()
        return ("skipped", rows[1][1]) if rows else ("read", "")


def _empty(folder: Path) -> None:
    """Empty a folder, even of folders deeper than a path can name."""
    removed = folder.with_name("removed")
    while (folder / "d" / "d").is_dir():
        os.rename(folder / "d", removed)
        if (removed / "d").is_dir():
            os.rename(removed / "d", folder / "d")
        shutil.rmtree(removed)
    shutil.rmtree(folder)
    folder.mkdir()
