"""One image file to what a beton stores: the JPEG itself where nothing has to change, else a new baseline
JPEG, or raw RGB.

EpochContext byte for byte: a baseline (or extended sequential) 8-bit JPEG of 3 components, upright, of the wanted
size, that the readers' decode call takes without a libjpeg warning. Everything else is decoded, turned
upright by its EXIF orientation, made 8-bit RGB (image_file.py), shrunk (never enlarged) and encoded again
without metadata.
"""

import io
import threading
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fastpsl.pipelines.beton.large_images import LargePictures
from fastpsl.pipelines.beton.shard import JPG, RAW
from fastpsl.pipelines.data.dataset import MAX_PIXELS, UPRIGHT
from fastpsl.pipelines.data.image_file import (
    BrokenImage,
    check_pixels,
    decode_any,
    jpeg_orientation,
    num_pixels,
    turn,
)
from fastpsl.pipelines.data.plain_jpeg import plain_decoder
from fastpsl.pipelines.decoders.area import shrink
from fastpsl.pipelines.decoders.libffcv import HEADER_GOOD, Codec, jpeg_header, why_missing

MAX_SIDE_PX = 65535  # two bytes in the table
# A JPEG is decoded at 1/2, 1/4 or 1/8 where that is still so many times the wanted size. Mean difference to
# shrinking the whole picture, and edges left (mean gradient; the whole one keeps .93 of Lanczos's), on 31
# photos: 2: 1.5 to 2.1 of 255, .91 to .94; 1.4: 2.0 to 3.1, .83; 1: 2.1 to 3.9, .77 to .91. Betons are kept
# for years: no blur for speed.
_SCALE_MARGIN = 2


@dataclass(frozen=True)
class Target:
    """What images become: sides in px (None: as they are), JPEG quality, "jpg" or "raw".

    Those whose shorter side would then be below `min_px` are left out.
    """

    short_side: int | None = None
    max_side: int | None = None
    quality: int = 90
    mode: str = "jpg"
    min_px: int = 0

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) to shrink to; both limits hold where both are given, and nothing is
        enlarged."""
        scale = 1.0
        if self.short_side:
            scale = min(scale, self.short_side / min(height, width))
        if self.max_side:
            scale = min(scale, self.max_side / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))


@dataclass
class Stored:
    """One sample as it goes to the file; `how` is passed, encoded (also: raw) or mended (encoded because
    libjpeg warned)."""

    data: bytes
    height: int
    width: int
    mode: int
    how: str


_local = threading.local()
_large = LargePictures()


def _codec() -> Codec | None:
    """This thread's libffcv codec; None where ffcv is not installed."""
    if not hasattr(_local, "codec"):
        _local.codec = None if why_missing() else Codec()
    return _local.codec


def convert(data: bytes, target: Target) -> Stored:
    """An image file's bytes to what is stored. Raises BrokenImage with the reason; safe to call from many
    threads, which large pictures keep waiting (large_pictures.py)."""
    if not data:
        raise BrokenImage("empty file")
    status, height, width, components, is_progressive, precision = jpeg_header(
        np.frombuffer(data, np.uint8), len(data)
    )
    if status != HEADER_GOOD or components != 3 or precision != 8 or height * width > MAX_PIXELS:
        with _large.room_for(num_pixels(data)):
            return _store(_shrink(decode_any(data), target), target, "encoded")
    with _large.room_for(height * width):
        return _convert_jpeg(data, height, width, bool(is_progressive), target)


def _convert_jpeg(data: bytes, height: int, width: int, is_progressive: bool, target: Target) -> Stored:
    orientation = jpeg_orientation(data)
    wanted = target.size(height, width)
    may_pass = (
        target.mode == "jpg" and not is_progressive and orientation == UPRIGHT and wanted == (height, width)
    )
    if may_pass and clean_decode(data, height, width):
        return Stored(data, height, width, JPG, "passed")
    how = "mended" if may_pass else "encoded"
    image = None if may_pass else _decode_shrunk(data, height, width, wanted)
    if image is not None:
        return _store(turn(image, orientation), target, how)
    return _store(_shrink(decode_any(data), target), target, how)


def store_array(image: np.ndarray, target: Target) -> Stored:
    """An RGB image in memory, uint8 [H, W, 3], to what is stored."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise BrokenImage(f"array of {image.dtype} {list(image.shape)}; uint8 [H, W, 3] is wanted")
    return _store(_shrink(image, target), target, "encoded")


def clean_decode(data: bytes, height: int, width: int) -> bool:
    """Whether the readers' decode call takes the JPEG without an error or warning, and finds the size of its
    header."""
    codec = _codec()
    if codec:
        return codec.decode(data, height, width)[1]
    picture = plain_decoder()(data)  # as readers without libffcv do
    return picture is not None and picture.shape == (height, width, 3)


def _decode_shrunk(data: bytes, height: int, width: int, wanted: tuple[int, int]) -> np.ndarray | None:
    """Decode by libffcv, at 1/2, 1/4, 1/8 where that is large enough, then shrink to `wanted`; None after any
    warning."""
    codec = _codec()
    if codec is None:
        return None
    rows, columns = (side * _SCALE_MARGIN for side in wanted)
    denominator = next((d for d in (8, 4, 2) if -(-height // d) >= rows and -(-width // d) >= columns), 1)
    is_halved = height >= rows and width >= columns
    image, is_good = codec.decode(data, height, width, denominator, to_shrink=is_halved)
    return shrink(image, *wanted) if is_good else None


def _shrink(image: np.ndarray, target: Target) -> np.ndarray:
    return shrink(image, *target.size(*image.shape[:2]))


def _store(image: np.ndarray, target: Target, how: str) -> Stored:
    height, width = image.shape[:2]
    if max(height, width) > MAX_SIDE_PX:
        raise BrokenImage(f"{width} x {height} px: a side above {MAX_SIDE_PX} px; shrink with --max-side")
    image = np.ascontiguousarray(image)
    if target.mode == "raw":
        return Stored(image.tobytes(), height, width, RAW, how)
    check_pixels(height, width)  # of arrays; no reader takes a larger JPEG
    codec = _codec()
    data = codec.encode(image, target.quality) if codec else None
    if data is None:
        out = io.BytesIO()
        try:
            Image.fromarray(image).save(out, "JPEG", quality=target.quality)
        except OSError as error:  # a side above JPEG's 65,500 px
            raise BrokenImage(f"{width} x {height} px cannot be encoded ({error})") from None
        data = out.getvalue()
    return Stored(data, height, width, JPG, how)
