"""The one way from an image's bytes to upright RGB, by Pillow.

- Alpha, also of palettes, is blended over white. 16-bit values are scaled by 255/65535 (three channels: the
high byte), or by a range of values (depth.py). Pillow converts palettes, grey and CMYK.
- Colour profiles are not applied. The first frame of animations and multi-page files is taken.
- orientation.py has the rule of what is upright.

pi-heif only decodes: a wheel of 1.5 MB with libheif and libde265, both under the LGPL. pillow-heif writes,
too, in a wheel of 5.7 MB. It holds x265, whose GPL would bind those who pass it on with fastpsl.
"""

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
from PIL.TiffImagePlugin import TiffImageFile

from fastpsl.console.installed import install
from fastpsl.files.system_errors import is_of_the_system
from fastpsl.pipelines.image.bands import (
    Layout,
    check_bands,
    decode_bands,
    is_missing,
    layout_of,
    layout_of_tags,
    needs_tifffile,
    take,
)
from fastpsl.pipelines.image.depth import BYTE, Scale
from fastpsl.pipelines.image.host_settings import decoding
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
from fastpsl.pipelines.interface.dataset import MAX_FILE_BYTES, MAX_PIXELS, UPRIGHT, BadImage, open_file
from fastpsl.pipelines.interface.reading import PLAIN, Reading

# The brands of HEVC images and sequences; source: ISO/IEC 23008-12, annex B.
_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_MAX_BRANDS_BYTES = 1 << 10


def is_heic(file: BinaryIO) -> bool:
    """Return whether a file says that it has an HEVC image."""
    file.seek(0)
    head = file.read(_MAX_BRANDS_BYTES)
    brands = head[8 : int.from_bytes(head[:4], "big")]
    return head[4:8] == b"ftyp" and any(brands[at : at + 4] in _BRANDS for at in range(0, len(brands), 4))


def _opener(plugin: str) -> tuple[Callable[[bytes], bool | str], Callable[[BinaryIO, str], Image.Image]]:
    """Return Pillow's functions for a format: one judges a file's first bytes, one opens the file."""
    module = importlib.import_module(f"PIL.{plugin}ImagePlugin")
    return module._accept, getattr(module, f"{plugin}ImageFile")


# The formats that Pillow may try. EPS is excluded, because it starts another program. These are Pillow's own
# openers: in Image.OPEN are those that the user's program has registered. MPO is read as the JPEG that it is.
_PLUGINS = {
    "JPEG": "Jpeg", "PNG": "Png", "WEBP": "WebP", "BMP": "Bmp", "TIFF": "Tiff", "PPM": "Ppm", "GIF": "Gif",
    "JPEG2000": "Jpeg2K", "AVIF": "Avif",
}  # fmt: skip
FORMATS = tuple(_PLUGINS)
_OPENERS = [_opener(plugin) for plugin in _PLUGINS.values()]
_WIDTH_TAG, _HEIGHT_TAG = 0x0100, 0x0101  # in TIFF
_BLOCK_BYTES = 1 << 20
_HEAD_BYTES = 16  # by which Pillow tells formats apart
# The pixels converted to RGB at a time, because a whole converted copy would take more memory.
_BAND_PIXELS = 1 << 20
_RGB_BYTES = 8  # of stored bands that count as one pixel of RGB, by the memory of decoding


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
    with _reasons(), open(path, "rb") as file:
        if layout := _layout(file, reading):  # Pillow may not open it
            width, height = layout.width, layout.height
            file.seek(0)
            orientation = tiff_orientation(file)
            return (width, height) if orientation >= TURNED else (height, width)
        with _open_colours(file) as image:
            width, height = image.size
            if image.format == "TIFF":  # some versions of Pillow return the upright size
                width, height = int(image.tag_v2[_WIDTH_TAG]), int(image.tag_v2[_HEIGHT_TAG])  # type: ignore[attr-defined]
            check_pixels(height, width)
            check_bands(image, reading.bands)
            # A PNG's orientation may follow its pixels, and Pillow decodes them to reach it.
            if image.format == "PNG" and "exif" not in image.info and _mentions_exif(path):
                image.load()
            orientation = _orientation_in(file, image) or exif_orientation(image)
    return (width, height) if orientation >= TURNED else (height, width)


def _layout(file: BinaryIO, reading: Reading) -> Layout | None:
    """Return the layout of a file whose bands tifffile reads; raise BadImage if bands are dropped else.

    A TIFF of which no bands are chosen is left to `_open_colours`, since Pillow reads its header, too.
    """
    file.seek(0)
    if not reading.bands and file.read(2) in (b"II", b"MM"):
        return None
    layout = layout_of(file)
    if layout is None or not needs_tifffile(layout, reading):
        return None
    check_pixels(layout.height, layout.width)
    return layout


def _open(file: BinaryIO) -> Image.Image:
    """Open an image of any known format; nothing but its header is decoded."""
    if is_heic(file):
        if is_missing("pi_heif"):
            raise BadImage(f"HEIC needs a package; {install('heic')} installs it")
        file.seek(0)
        # It is upright by the file's boxes, and EXIF is of no account.
        image: Image.Image = importlib.import_module("pi_heif").HeifImageFile(file)
        return image
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    for accepts, opens in _OPENERS:
        # Not Image.open, which refuses more than 179 megapixels, or as many as the user's program says.
        answer = accepts(head)
        if answer and not isinstance(answer, str):  # a text says what is missing
            file.seek(0)
            with suppress(SyntaxError, IndexError, TypeError, struct.error):  # not of this format, after all
                return opens(file, "")
    layout = layout_of(file)
    if layout and not layout.is_usual:  # Pillow reads no values of its type
        raise layout.refusal()
    raise Image.UnidentifiedImageError


def _open_colours(file: BinaryIO) -> Image.Image:
    """Open an image of any known format; raise BadImage for a TIFF of which Pillow drops bands."""
    image = _open(file)
    layout = layout_of_tags(image.tag_v2) if isinstance(image, TiffImageFile) else None
    if layout and not layout.is_colour:
        raise layout.refusal()
    return image


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
        with decoding():
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


def num_pixels(data: bytes, reading: Reading = PLAIN) -> int:
    """Return the number of pixels of an image in any known format, from its header.

    For many bands it is the number of RGB pixels that take as much memory.
    """
    with _reasons():
        if layout := _layout(io.BytesIO(data), reading):
            return layout.height * layout.width * max(1, layout.num_bytes // _RGB_BYTES)
    with _reasons(), _open_colours(io.BytesIO(data)) as image:
        check_pixels(image.height, image.width)
        return image.height * image.width


def decode_any(data: bytes, reading: Reading = PLAIN) -> np.ndarray:
    """Decode an image of any known format to upright RGB, uint8 [H, W, 3]."""
    return decode_deep(data, reading)[0]


def decode_deep(data: bytes, reading: Reading) -> tuple[np.ndarray, Scale]:
    """Decode as `decode_any`, and return what was seen of values of more than 8 bits, too."""
    scale = Scale(reading.range)
    rgb = _decoded(data, reading, scale)
    assert rgb is not None
    return rgb, scale


def look_at_values(data: bytes, bands: tuple[int, ...] = ()) -> Scale:
    """Return what is seen of an image's values of more than 8 bits; one of 8 bits is not decoded."""
    reading = Reading((0, 1), bands)  # with any range they are the file's own
    scale = Scale(reading.range)
    _decoded(data, reading, scale, only_deep=True)
    return scale


def _decoded(data: bytes, reading: Reading, scale: Scale, only_deep: bool = False) -> np.ndarray | None:
    """Return an image as upright RGB; None for one of 8 bits where only deep ones are wanted."""
    with _reasons():
        if layout := _layout(io.BytesIO(data), reading):
            if only_deep and max(layout.bits) <= BYTE:
                return None
            rgb = decode_bands(data, layout, reading.bands, scale.grey)
            return np.ascontiguousarray(turn(rgb, tiff_orientation(io.BytesIO(data))))
    with _reasons(), _open_colours(io.BytesIO(data)) as image:
        _check_scans(data)
        orientation = _orientation_in(io.BytesIO(data), image)
        if image.format == "TIFF":  # Pillow would turn it, by a rule of its own
            image.getexif()[ORIENTATION_TAG] = UPRIGHT
        low = scale.prepare(image, data, lambda: _open(io.BytesIO(data)))
        if only_deep and not scale.is_deep:
            return None
        return _pixels(image, lambda image: orientation or exif_orientation(image), scale, low, reading.bands)


def _check_scans(data: bytes) -> None:
    scans = jpeg_scans(data) if data.startswith(b"\xff\xd8") else None
    if scans in SCAN_REASONS:
        raise BadImage(SCAN_REASONS[scans])


def convert_pillow(image: Image.Image, reading: Reading = PLAIN) -> np.ndarray:
    """Return an image of Pillow as upright RGB, uint8 [H, W, 3]."""
    scale, low = Scale(reading.range), None
    with _reasons():
        layout = layout_of_tags(image.tag_v2) if isinstance(image, TiffImageFile) else None
        if layout and not layout.is_colour:
            raise BadImage(f"{layout.name}, which Pillow has dropped some of; give the path of the file")
        if isinstance(image, ImageFile.ImageFile) and image.tile:  # it is not loaded yet
            if image.format not in (*FORMATS, "MPO"):
                raise BadImage(f"{image.format} is not opened here; call the image's load() first")
            if image.fp:
                image.fp.seek(0)
                data = image.fp.read(MAX_FILE_BYTES)
                if image.format in ("JPEG", "MPO"):
                    _check_scans(data)
                low = scale.prepare(image, data, lambda: _frame(data, image.tell()))
        return _pixels(image, pillow_orientation, scale, low, reading.bands)


def _frame(data: bytes, number: int) -> Image.Image:
    image = _open(io.BytesIO(data))
    image.seek(number)
    return image


def _pixels(
    image: Image.Image,
    orientation_of: Callable[[Image.Image], int],
    scale: Scale,
    low: Image.Image | None,
    bands: tuple[int, ...],
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
        rgb[top:bottom] = np.asarray(_rgb(image.crop(rows), scale, low and low.crop(rows), bands))
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


def _rgb(
    image: Image.Image, scale: Scale, low: Image.Image | None, bands: tuple[int, ...]
) -> "Image.Image | np.ndarray":
    """Return the image as 8-bit RGB, or as grey [H, W, 1]; see the module's docstring."""
    if image.mode == "F" or image.mode.startswith("I"):
        check_bands(image, bands)
        values = np.asarray(image)
        grey = scale.grey(values)
        if isinstance(clear := image.info.get("transparency"), int):
            grey[values == clear] = 255
        return grey[:, :, None]
    if scale.is_deep:
        image = scale.colours(image, low)
    image = take(image, bands)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
