"""Bands beyond those of a colour space: their number by the header, and the chosen ones.

A band beyond the colour space is alpha where ExtraSamples of a TIFF, or `cdef` of a JPEG 2000, is 1 or 2. It
is also alpha where a four-band 8-bit file says nothing. Pillow drops any other without a word.

tifffile reads the chosen bands of a TIFF's first page, strip by strip. The header's claims are compared with
the file and a limit before that. Deflated strips are inflated here, because tifffile sets no limit to it. For
some compressions it needs imagecodecs, a package of 80 MB with many C libraries.
"""

import functools
import importlib
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, final

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from fastpsl.console.installed import install
from fastpsl.pipelines.image.host_settings import log_quietly
from fastpsl.pipelines.interface.dataset import MAX_PIXELS, BadImage
from fastpsl.pipelines.interface.reading import Reading

_MAX_BYTES = 3 * MAX_PIXELS  # of a decoded strip or tile, as the largest RGB image has
_ROWS_BYTES = 1 << 20  # of the rows that become 8 bits at a time
_HEAD_BYTES = 1 << 16  # of a JPEG 2000, whose boxes and first marker tell its bands
_KINDS = {1: "uint", 2: "int", 3: "float"}  # by SampleFormat
_NUM_COLOURS = {2: 3, 5: 4, 6: 3, 8: 3}  # by PhotometricInterpretation: RGB, CMYK, YCbCr, Lab; else 1
_ALPHA = (1, 2)  # premultiplied or not, in ExtraSamples and in `cdef`
_NONE, _DEFLATE = 1, (8, 32946)
# tifffile's own decoders of the first three set no limit to what they make, or are slow.
_BY_IMAGECODECS = {34925: "LZMA", 50000: "Zstandard", 32773: "PackBits", 5: "LZW"}
_OTHERS = {6: "JPEG", 7: "JPEG", 34712: "JPEG 2000", 50001: "WebP", 34887: "LERC"}

# Packages without which some images cannot be read.
PACKAGES = ("pi_heif", "tifffile", "imagecodecs")


@functools.cache
def is_missing(package: str) -> bool:
    """Return whether a package is not installed, or does not load."""
    try:
        importlib.import_module(package)
    except ImportError:
        return True
    return False


@final
@dataclass(frozen=True)
class Layout:
    """The bands of a TIFF or JPEG 2000 by its header."""

    format: str
    height: int  # px, as stored
    width: int
    num_bands: int
    num_colours: int  # of the colour space
    bits: tuple[int, ...]
    kind: str  # uint, int, float or another one
    extra: tuple[int, ...] | None  # what the file says of the bands beyond the colours; None for nothing
    compression: int = _NONE

    @property
    def name(self) -> str:
        """The format, the number of bands and their type."""
        dtype = f"{self.kind}{self.bits[0]}" if len({*self.bits}) == 1 else "several types"
        return f"a {self.format} of {self.num_bands} band{'s' * (self.num_bands != 1)} of {dtype}"

    @property
    def is_colour(self) -> bool:
        """Whether the bands are colours, or colours and alpha."""
        if self.num_bands == self.num_colours + 1:
            is_untold_alpha = self.extra is None and self.num_bands == 4 and {*self.bits} == {8}
            return is_untold_alpha or (self.extra or (0,))[0] in _ALPHA
        return self.num_bands <= self.num_colours

    @property
    def is_usual(self) -> bool:
        """Whether the bands are colours of at most 8 bits."""
        return self.is_colour and max(self.bits) <= 8

    @property
    def num_bytes(self) -> int:
        """The bytes of a pixel, each value in whole bytes."""
        return self.num_bands * (max(self.bits) + 7 >> 3)

    def refusal(self) -> BadImage:
        """Return the error of an image whose bands must be chosen."""
        some = ",".join(map(str, range(1, min(self.num_bands, 3) + 1))) if self.num_bands != 2 else "1"
        return BadImage(f"{self.name}; choose one or three of them, as by --bands {some}")


def layout_of(file: BinaryIO) -> Layout | None:
    """Return the layout of a TIFF or JPEG 2000; None for other files, or if their header has no size."""
    file.seek(0)
    head = file.read(16)
    if head.startswith((b"II", b"MM")):
        return _tiff_layout(file, head)
    if head.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")):
        return _jpeg_2000_layout(head + file.read(_HEAD_BYTES))
    return None


def _tiff_layout(file: BinaryIO, head: bytes) -> Layout | None:
    try:
        if 43 in head[2:4]:  # BigTIFF, of which Pillow knows the little-endian one
            directory = ImageFileDirectory_v2(b"II+\0" + head[4:], prefix=head[:2])
        else:
            directory = ImageFileDirectory_v2(head[:8])
    except (SyntaxError, struct.error):  # no TIFF
        return None
    file.seek(directory.next)
    directory.load(file)
    return layout_of_tags(directory)


def layout_of_tags(directory: ImageFileDirectory_v2) -> Layout | None:
    """Return the layout of a TIFF that Pillow has opened; None if its size is not known."""

    def numbers(tag: int) -> tuple[int, ...]:
        value = directory.get(tag, ())
        values = value if isinstance(value, (tuple, bytes)) else (value,)
        return tuple(each for each in values if isinstance(each, int))

    width, height, photometric, compression = (
        (*numbers(tag), default)[0] for tag, default in ((256, 0), (257, 0), (262, 0), (259, _NONE))
    )
    if width <= 0 or height <= 0:
        return None
    in_jpeg = compression in (6, 7) and photometric in (2, 6)  # where Pillow takes three for granted
    num_bands = (*numbers(277), 3 if in_jpeg else 1)[0]
    return Layout(
        "TIFF", height, width, num_bands, _NUM_COLOURS.get(photometric, 1),
        numbers(258)[:num_bands] or (1,), _KINDS.get((*numbers(339), 1)[0], "another type of "),
        numbers(338) if 338 in directory else None, compression,
    )  # fmt: skip


def _jpeg_2000_layout(head: bytes) -> Layout | None:
    """Return the layout by the boxes and the marker SIZ. Source: ISO/IEC 15444-1, A.5.1 and I.5.3."""
    boxes, marker, size = head.partition(b"\xff\x4f\xff\x51")
    if not marker or len(size) < 39:
        return None
    right, bottom, left, top = (int.from_bytes(size[at : at + 4], "big") for at in (4, 8, 12, 16))
    num_bands = int.from_bytes(size[36:38], "big")
    extra = None
    if (at := boxes.find(b"cdef") + 4) > 3:
        entries = (boxes[start : start + 6] for start in range(at + 2, at + 2 + 6 * num_bands, 6))
        types = [int.from_bytes(entry[2:4], "big") for entry in entries]
        extra = tuple(type for type in types if type)
    is_cmyk = b"colr\x01\0\0\0\0\0\x0c" in boxes
    num_colours = 4 if is_cmyk else 3 if num_bands > 2 else 1
    bits = tuple((each & 0x7F) + 1 for each in size[38 : 38 + 3 * num_bands : 3])
    return Layout("JPEG 2000", bottom - top, right - left, num_bands, num_colours, bits, "uint", extra)


def needs_tifffile(layout: Layout, reading: Reading) -> bool:
    """Return whether tifffile reads the bands; raise BadImage if none is chosen, or cannot be read."""
    if layout.format != "TIFF" and layout.num_bands > 4:
        raise BadImage(f"{layout.name}, of which none can be chosen; write it as a TIFF")
    if not (reading.bands or layout.is_colour):
        raise layout.refusal()
    if not reading.bands or layout.is_usual or layout.format != "TIFF":
        return False
    check_number(reading.bands, layout.num_bands, layout.name)
    if is_missing("tifffile"):
        raise BadImage(f"bands of a TIFF need a package; {install('tiff')} installs it")
    if layout.compression not in (_NONE, *_DEFLATE):
        name = _BY_IMAGECODECS.get(layout.compression)
        if name is None:
            name = _OTHERS.get(layout.compression, f"method {layout.compression}")
            raise BadImage(f"{layout.name}, compressed by {name}, which cannot be read; write it by Deflate")
        if is_missing("imagecodecs"):
            raise BadImage(
                f"{layout.name}, compressed by {name}; pip install imagecodecs, or write it by Deflate"
            )
    return True


def leaves_jpeg(bands: tuple[int, ...], num_components: int) -> bool:
    """Return whether a JPEG of so many components stays as it is, so that any decoder may take it."""
    return not bands or bands == tuple(range(1, num_components + 1))


def check_number(bands: tuple[int, ...], num_bands: int, name: str) -> None:
    """Raise BadImage for a band that an image has not."""
    if bands and max(bands) > num_bands:
        raise BadImage(f"{name} has no band {max(bands)}; give --bands of 1 to {num_bands}")


def check_bands(image: Image.Image, bands: tuple[int, ...]) -> None:
    """Raise BadImage for a band that an image has not as Pillow reads it."""
    names = "".join(Image.new(_mode(image), (1, 1)).getbands())
    check_number(bands, len(names), f"an image of {len(names)} band{'s' * (len(names) != 1)} ({names})")


def _mode(image: Image.Image) -> str:
    """Return the mode whose bands count: palettes and other colour spaces become RGB."""
    if image.mode in ("L", "LA", "RGB", "RGBA", "F") or image.mode.startswith("I"):
        return image.mode
    if image.mode == "P":
        return "RGBA" if "transparency" in image.info else "RGB"
    return {"1": "L", "La": "LA", "RGBa": "RGBA", "PA": "RGBA"}.get(image.mode, "RGB")


def take(image: Image.Image, bands: tuple[int, ...]) -> Image.Image:
    """Return the chosen bands of an image that Pillow has read, as they are: alpha is one of them."""
    if not bands:
        return image
    check_bands(image, bands)
    mode = _mode(image)
    if mode == "F" or mode.startswith("I"):
        return image
    image = image if image.mode == mode else image.convert(mode)
    chosen = [image.getchannel(band - 1) for band in bands]
    return chosen[0] if len(chosen) == 1 else Image.merge("RGB", chosen)


def decode_bands(
    data: bytes, layout: Layout, bands: tuple[int, ...], to_8_bits: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return the chosen bands of a TIFF's first page, not turned upright, uint8 [H, W, 3]; one becomes grey.

    Args:
        data: The file's bytes.
        layout: What `layout_of` returned, and `needs_tifffile` let pass.
        bands: One or three numbers.
        to_8_bits: Makes uint8 of deeper values, [h, w]; uint8 stays as it is.
    """
    rgb = np.empty((layout.height, layout.width, len(bands)), np.uint8)
    num_rows = max(1, _ROWS_BYTES // (layout.width * layout.num_bytes))
    for part, block, plane in _blocks(data, layout, rgb, bands):
        for row in range(0, len(part), num_rows):
            rows = slice(row, row + num_rows)
            for i, band in enumerate(bands):
                if plane in (None, band):
                    values = block[rows, :, band - 1 if plane is None else 0]
                    part[rows, :, i] = values if values.dtype == np.uint8 else to_8_bits(values)
    return rgb if len(bands) == 3 else np.repeat(rgb, 3, 2)


def _blocks(
    data: bytes, layout: Layout, rgb: np.ndarray, bands: tuple[int, ...]
) -> Iterator[tuple[np.ndarray, np.ndarray, int | None]]:
    """Yield each strip's or tile's part of `rgb`, its values [h, w, bands], and its band if it has one."""
    tifffile = importlib.import_module("tifffile")
    log_quietly("tifffile")
    off = {f"is_{flag}": False for flag in tifffile.TIFF.FILE_FLAGS}  # readers of private tags
    with tifffile.TiffFile(io.BytesIO(data), **off) as file:
        page = file.pages.first
        (height, width), num_planes, num_bytes = _check(page, data, layout)
        page.compression = _NONE if layout.compression in _DEFLATE else page.compression
        per_plane = len(page.dataoffsets) // num_planes
        for index, (offset, size) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
            plane = None if num_planes == 1 else index // per_plane + 1
            if plane and plane not in bands:
                continue
            stored = data[offset : offset + size]
            if layout.compression in _DEFLATE:
                stored = _inflated(stored, num_bytes)
            block, (_, _, top, left, _), _ = page.decode(stored, index)
            part = rgb[top : top + height, left : left + width]
            block = block[0, : part.shape[0], : part.shape[1]]
            if block.shape[:2] != part.shape[:2]:
                raise BadImage(f"{layout.name}, whose strips or tiles are not all there")
            yield part, block, plane


def _inflated(data: bytes, num_bytes: int) -> bytes:
    """Return what a deflated strip holds, if that is at most `num_bytes`."""
    inflate = zlib.decompressobj()
    inflated = inflate.decompress(data, num_bytes + 1)  # one more, to reach the checksum
    if not inflate.eof:
        raise BadImage("a strip or tile that is cut short, or holds more than its place")
    return inflated


def _check(page: Any, data: bytes, layout: Layout) -> tuple[tuple[int, int], int, int]:
    """Return the (height, width) of strips or tiles, the number of planes, and the most bytes of a strip.

    Raises BadImage for claims that the file does not hold.
    """
    num_planes = layout.num_bands if page.planarconfig == 2 else 1
    height, width = (
        (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    )
    size = (page.imagelength, page.imagewidth, page.samplesperpixel, page.imagedepth, page.tiledepth)
    is_whole = size == (layout.height, layout.width, layout.num_bands, 1, 1) and min(height, width) > 0
    is_whole = is_whole and page.planarconfig in (1, 2)
    if not is_whole or page.dtype is None or page.dtype.kind not in "uif":
        raise BadImage(f"{layout.name}, whose header is of a kind that is not read")
    num_bytes = height * width * layout.num_bytes // num_planes
    if num_bytes > _MAX_BYTES:
        raise BadImage(f"{layout.name}, of {num_bytes:,} bytes in one piece; cut it into tiles")
    offsets, counts = page.dataoffsets, page.databytecounts
    num_segments = -(-layout.height // height) * -(-layout.width // width) * num_planes
    ends = [offset + count for offset, count in zip(offsets, counts, strict=False)]
    is_here = len(offsets) == len(counts) == num_segments and min(*offsets, *counts) > 0
    if not is_here or max(ends) > len(data) or sum(counts) > len(data):
        raise BadImage(f"{layout.name}, whose strips or tiles are not all there")
    return (height, width), num_planes, num_bytes
