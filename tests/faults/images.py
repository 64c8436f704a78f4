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
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from fastpsl.commands.data import Write
from fastpsl.pipelines.beton.encode import BYTES_PER_PIXEL
from fastpsl.pipelines.beton.output import bad_path
from fastpsl.pipelines.image.image_file import MAX_PIXELS
from fastpsl.pipelines.interface.dataset import MAX_FILE_BYTES
from tests.faults.child import Case, Jury, Limits, refusal
from tests.faults.readings import CONTROL, CommandOutput, command, flip, read, verify
from tests.faults.report import Finding, Outcome
from tests.pipelines.photos import DECODERS, jpeg, photo

File = tuple[bytes, str]  # the bytes and the ending

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


# The damage: a JPEG has wrong markers, sizes or tables, a PNG wrong chunks, or far more content than its size
# suggests.

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


@functools.cache
def _packed_zeros(num_bytes: int) -> bytes:
    return zlib.compress(bytes(num_bytes), 1)


@functools.lru_cache(4)
def _large_png(side: int, depth: int, colour: int) -> bytes:
    """Return black pixels [side, side] of a bit depth and a colour type of PNG."""
    row = bytes(1 + (side * {0: 1, 2: 3, 6: 4}[colour] * depth + 7) // 8)
    compressor = zlib.compressobj(1)
    pixels = b"".join([*(compressor.compress(row) for _ in range(side)), compressor.flush()])
    head = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)
    return _png([(b"IHDR", head), (b"IDAT", pixels), (b"IEND", b"")])


def damaged(kind: str, random: Random) -> File:
    """Return one of the sound files with a damage of MUTANTS, or a file that never was sound."""
    formats = {"jpeg": "jpeg", "png_h": "png", "png_c": "png", "tiff_": "tiff"}
    start = next((name for prefix, name in formats.items() if kind.startswith(prefix)), "")
    if kind not in _FROM_NOTHING:
        data, ending = _some_image(random, start)
    match kind:
        case "sound":
            pass
        case "other_ending":
            ending = random.choice([".jpg", ".png", ".webp", ".bmp", ".tif", ".ppm", ".JPG"])
        case "bits":
            flip(data, random, [1, 1, 4, 64])
        case "head_bits":
            flip(data, random, [1, 2, 8], 0, min(len(data), 200))
        case "truncated":
            del data[random.choice([random.randrange(len(data)), len(data) - 1, random.randrange(64)]) :]
        case "grown":
            ends = [bytes(100), random.randbytes(1000), bytes(data), b"\xff\xd9" * 50]
            data += random.choice([*ends, b"<script>alert(1)</script>"])
        case "overwritten":  # by zeros, 0xff, markers or noise
            at, size = random.randrange(len(data)), random.randrange(1, 400)
            runs = [
                bytes(size),
                b"\xff" * size,
                random.randbytes(size),
                b"\xff\xd9" * size,
                b"\xff\xd0" * size,
            ]
            data[at : at + size] = random.choice(runs)[:size]
        case "spliced":  # the beginning of one format and the rest of another
            other, _ = _some_image(random)
            at = random.randrange(len(data))
            data[at:] = other[at:]
        case "no_image":
            texts = [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"<html>404</html>", bytes(500)]
            text = random.choice([*texts, random.randbytes(500)])
            return text, random.choice([".jpg", ".png", ".tif", ".webp"])
        case "tiff_tag":  # sizes, offsets, counts or compression in an entry of the directory
            (directory,) = struct.unpack_from("<I", data, 4)
            (num,) = struct.unpack_from("<H", data, directory)
            entry = directory + 2 + 12 * random.randrange(num)
            numbers = [0, 1, 2, 7, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, len(data)]
            at, form = random.choice([(2, "<H"), (4, "<I"), (8, "<I"), (8, "<I")])
            number = random.choice(numbers) % (1 << 8 * struct.calcsize(form))
            struct.pack_into(form, data, entry + at, number)
        case "other_size":  # in a BMP or PPM
            height, width = _lying_sizes(random)
            if random.random() < 0.5:
                body = sound_images()["ppm"][0].partition(b"\n255\n")[2]
                head = random.choice([b"P6", b"P5", b"P4", b"P7", b"P3"]) + b"\n%d %d\n%d\n"
                return head % (width, height, random.choice([255, 65535, 1, 0, 10**20])) + body, ".ppm"
            data, ending = bytearray(sound_images()["bmp"][0]), ".bmp"
            sides = random.choice([width, -width, 2**31 - 1]), random.choice([height, -height])
            struct.pack_into("<ii", data, 18, *sides)
        case "jpeg_segment":  # removed, doubled, or of a wrong length
            segments = _segments(data)
            _, at, length = random.choice(segments)
            how = random.randrange(3)
            if how == 0:
                del data[at : at + length]
            elif how == 1:
                _, to, _ = random.choice(segments)
                data[to:to] = data[at : at + length]
            else:
                struct.pack_into(">H", data, at + 2, random.choice([0, 1, 2, 3, 17, 100, 65535]))
        case "jpeg_size":
            struct.pack_into(">HH", data, _frame(data) + 5, *_lying_sizes(random))
        case "jpeg_frame":  # another kind, precision, number of components or sampling
            at = _frame(data)
            how = random.randrange(4)
            if how < 3:
                values = (_OTHER_FRAMES, [1, 7, 9, 12, 16, 255], [0, 1, 2, 4, 5, 255])[how]
                data[at + (1, 4, 9)[how]] = random.choice(values)
            else:
                for i in range(data[at + 9]):
                    data[at + 11 + 3 * i] = random.choice([0x11, 0x22, 0x44, 0x00, 0x14, 0x41, 0xFF, 0x21])
        case "jpeg_exif":
            directory = struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, random.randrange(12), 0, 0)
            bodies = [
                random.randbytes(random.randrange(200)), b"II*\0" + random.randbytes(40),
                b"MM\0*" + directory,
                b"II*\0" + struct.pack("<IH", 8, 65535), b"II*\0" + struct.pack("<I", 0xFFFFFFFF),
                b"II*\0" + struct.pack("<IHHHI", 8, 1, 0x112, 4, 2**31) + b"\6\0\0\0" + struct.pack("<I", 8),
            ]  # fmt: skip
            body = b"Exif\0\0" + random.choice(bodies)
            data[2:2] = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
        case "jpeg_marker":  # senseless restart intervals, tables or application data before the scan
            markers = [
                b"\xff\xdd\0\4" + struct.pack(">H", random.choice([0, 1, 65535])),
                b"\xff\xc4\0\x13" + random.randbytes(17),
                b"\xff\xdb\0\x43\0" + bytes(64), b"\xff\xdc\0\4\0\x10", b"\xff\x01", b"\xff\xff\xff\xff",
                b"\xff\xcc\0\4\0\x10", b"\xff\xe2\0\x0eICC_PROFILE\0",
                b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([random.choice([0, 1, 2, 9])]),
            ]  # fmt: skip
            at = _segments(data)[-1][1]
            data[at:at] = random.choice(markers)
        case "jpeg_many_scans":  # of a progressive JPEG: few bytes, much work
            jpeg = sound_images()["jpeg progressive"][0]
            scans = jpeg[_segments(jpeg)[-1][1] : -2]
            return jpeg[:-2] + scans * random.choice([5, 60, 400]) + b"\xff\xd9", ".jpg"
        case "png_head":  # a wrong size, depth or colour type, with a right checksum
            (_, head), *rest = _chunks(data)
            height, width = _lying_sizes(random)
            sides = random.choice([(width, height), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1)])
            depth, colour = random.choice([1, 2, 4, 8, 16, 3]), random.choice([0, 2, 3, 4, 6, 7])
            colours = bytes([depth, colour, 0, 0, random.choice([0, 1])])
            head = random.choice([struct.pack(">II", *sides) + head[8:], head[:8] + colours])
            return _png([(b"IHDR", head), *rest]), ending
        case "png_chunk":  # removed, doubled, emptied or moved, or of a wrong length
            chunks = _chunks(data)
            at, how = random.randrange(len(chunks)), random.randrange(5)
            if how == 0:
                del chunks[at]
            elif how == 1:
                chunks.insert(random.randrange(len(chunks)), chunks[at])
            elif how == 2:
                chunks[at] = (chunks[at][0], b"")
            elif how == 3:
                random.shuffle(chunks)
            else:
                at = random.randrange(8, len(data) - 4)
                struct.pack_into(">I", data, at, random.choice([0, 2**31 - 1, 2**31, 2**32 - 1]))
                return bytes(data), ending
            return _png(chunks), ending
        case "png_text_bomb":  # 100 MB of text or colour profile in a few kB
            chunks = _chunks(sound_images()["png"][0])
            name = random.choice([b"zTXt", b"iCCP", b"iTXt"])
            body = (b"x\0\1\0\0\0" if name == b"iTXt" else b"x\0\0") + _packed_zeros(100 << 20)
            return _png([chunks[0], (name, body), *chunks[1:]]), ".png"
        case "bomb":  # a sound image of mostly 4 megapixels, at times 25 or nearly the limit, or above it
            if random.random() < 0.1:
                return _large_png(30_000, 1, 0), ".png"
            side = random.choices([2000, 5000, LARGE_PX], [85, 13, 2])[0]
            return _large_png(side, *random.choice([(8, 0), (16, 0), (8, 6), (1, 0), (8, 2)])), ".png"
        case _:
            raise KeyError(kind)
    return bytes(data), ending


_FROM_NOTHING = ("no_image", "other_size", "jpeg_many_scans", "png_text_bomb", "bomb")
MUTANTS = (
    "sound", "other_ending", "bits", "head_bits", "truncated", "grown", "overwritten", "spliced", "no_image",
    "tiff_tag", "other_size", "jpeg_segment", "jpeg_size", "jpeg_frame", "jpeg_exif", "jpeg_marker",
    "jpeg_many_scans", "png_head", "png_chunk", "png_text_bomb", "bomb",
)  # fmt: skip

# Odd file names, and entries of a folder that are no files or no images.

# Names without the ending, for sound and broken files. They are bytes, as in a file system.
NAMES = [
    b"mutant", "ünï 中文 😀".encode(), b"new\nline", b"latin\xe9", b"\x1b[31mred\x1b]0;title\x07",
    b'tab\tquote"comma,', b"=HYPERLINK(1)", b"@SUM(1)", b" lead", b"-rf", b"*?[x]", b"%s{0}", b"a" * 250,
    "\u202egpj".encode(), b"\rreturn", b"\x9b31m", "\u009b31m".encode(), b"back\\slash\\n",
    b"<script>alert(1)<", b"'; drop", b"\x7f", b"..", b"%00",
]  # fmt: skip
# Files that are regular by their mode, but have no size or no end, or are no images.
_OF_THE_SYSTEM = ["/etc/passwd", "/proc/self/mem", "/proc/self/maps", "/proc/self/pagemap", "/proc/kallsyms"]


def make_odd(kind: str, path: Path, random: Random) -> None:
    """Make one of ODD at `path`, or beside it."""
    sound, folder = sound_images()["jpeg"][0], os.O_RDONLY | os.O_DIRECTORY
    match kind:
        case "dangling_link":
            path.symlink_to("/nonexistent/picture.jpg")
        case "circle_of_links":
            path.symlink_to("other.jpg")
            path.with_name("other.jpg").symlink_to(path.name)
        case "link_to_itself":
            path.symlink_to(path.name)
        case "link_to_a_device":
            path.symlink_to(random.choice(["/dev/zero", "/dev/null", "/dev/random", "/dev/tty"]))
        case "link_to_the_system":
            path.symlink_to(random.choice(_OF_THE_SYSTEM))
        case "link_to_a_folder":
            path.symlink_to(random.choice(["..", "/etc/fonts", "."]))
        case "folder_named_as_image":
            path.mkdir()
            (path / "in.jpg").write_bytes(sound)
        case "pipe":
            os.mkfifo(path)
        case "unix_socket":
            with socket.socket(socket.AF_UNIX) as server:
                current = os.open(path.parent, folder)
                server.bind(f"/proc/self/fd/{current}/{path.name}")  # its path is limited to 107 bytes
                os.close(current)
        case "sparse":  # a file of 40 GB that begins like an image
            head, ending = sound_images()[random.choice(["jpeg", "png", "tiff", "bmp", "webp", "ppm"])]
            with open(path.with_suffix(ending), "wb") as file:
                file.write(head[: random.choice([4, 200, len(head)])])
                file.truncate(40 << 30)
        case "no_rights":
            path.write_bytes(sound)
            path.chmod(0)
        case "deep_folders":  # an image below 1,200, beyond Python's recursion limit and the longest path
            current = os.open(path.parent, folder)
            for _ in range(1200):
                os.mkdir("d", dir_fd=current)
                below = os.open("d", folder, dir_fd=current)
                os.close(current)
                current = below
            descriptor = os.open("in.jpg", os.O_WRONLY | os.O_CREAT, dir_fd=current)
            os.write(descriptor, sound)
            os.close(descriptor)
            os.close(current)
        case _:
            raise KeyError(kind)


ODD = (
    "dangling_link", "circle_of_links", "link_to_itself", "link_to_a_device", "link_to_the_system",
    "link_to_a_folder", "folder_named_as_image", "pipe", "unix_socket", "sparse", "no_rights", "deep_folders",
)  # fmt: skip

# The harness.


def case_of(seed: int) -> Case:
    if seed % _ODD_EVERY == _ODD_EVERY - 1:
        return Case(seed, ODD[seed // _ODD_EVERY % len(ODD)])
    return Case(seed, MUTANTS[seed % len(MUTANTS)])


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
            make_odd(case.name, self.odd / "odd.jpg", choices)
        else:
            data, ending = damaged(case.name, choices)
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
        if rows := self._bad_rows():
            if any(len(row) != 2 for row in rows) or rows[0] != ["path", "reason"] or len(rows) > 3:
                return "escaped", f"{bad_path(self.out).name} falls apart: {rows}"
            if any(CONTROL.search(row[1]) or not row[1] for row in rows):
                return "unclear", f"reasons: {rows}"
        return None

    def _bad_rows(self) -> list[list[str]]:
        path = bad_path(self.out)
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
        rows = self._bad_rows()
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
