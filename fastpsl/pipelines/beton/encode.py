"""Conversion of one image to its stored form: the original JPEG where possible, else a new one, or raw RGB.

A file can be stored byte for byte if it is a baseline (or extended sequential) 8-bit JPEG of 3 components. It
must be upright, of the wanted size and with all of its tables, and the readers' decode call takes it without
a libjpeg warning. Any other image is decoded, turned upright by its EXIF orientation, converted to 8-bit RGB
(image_file.py), shrunk (never enlarged) and encoded again without metadata. Decoding is libjpeg's accurate
one, as Pillow's. From a JPEG to a JPEG, luma and colours are shrunk as they are stored, without RGB between
them. Of each JPEG that would be stored, the coefficients can be packed instead (image/coefficients.py).
"""

import contextlib
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from PIL import Image

from fastpsl.pipelines.beton.shard import COEFFICIENTS, JPG, RAW
from fastpsl.pipelines.image.bands import leaves_jpeg
from fastpsl.pipelines.image.codec import Codec, shrink
from fastpsl.pipelines.image.coefficients import to_jpeg
from fastpsl.pipelines.image.depth import Scale
from fastpsl.pipelines.image.image_file import check_pixels, decode_any, decode_deep, num_pixels
from fastpsl.pipelines.image.jpeg import HEADER_GOOD, SCANS_GOOD, decode_plainly, jpeg_header, jpeg_scans
from fastpsl.pipelines.image.libturbo import remedy, why_missing
from fastpsl.pipelines.image.orientation import jpeg_orientation, turn
from fastpsl.pipelines.interface.dataset import MAX_PIXELS, UPRIGHT, BadImage
from fastpsl.pipelines.interface.reading import Reading

# The most that an image takes from decoding to JPEG. Measured: JPEG 2000 with alpha 25, WebP 16, AVIF and
# a progressive CMYK JPEG 12, HEIC 10, RGBA 7, 16-bit grey and GIF 5.
BYTES_PER_PIXEL = 25
LARGE_PIXELS = 1 << 23  # smaller images do not wait: 210 MB per thread at most
TOGETHER_BYTES = 4 << 30  # of all threads' large images; less would make them wait more (not measured)


class MemoryGate:
    """A gate that admits large images up to `limit_bytes` together; one that takes more goes in alone."""

    def __init__(self, limit_bytes: int = TOGETHER_BYTES) -> None:
        self._limit_bytes, self._held_bytes = limit_bytes, 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def room_for(self, num_pixels: int) -> Iterator[None]:
        """Hold room during the block. Those inside compute on bytes in memory, so the wait for it ends."""
        num_bytes = num_pixels * BYTES_PER_PIXEL if num_pixels > LARGE_PIXELS else 0
        if not num_bytes:
            yield
            return
        with self._changed:
            self._changed.wait_for(
                lambda: not self._held_bytes or self._held_bytes + num_bytes <= self._limit_bytes
            )
            self._held_bytes += num_bytes
        try:
            yield
        finally:
            with self._changed:
                self._held_bytes -= num_bytes
                self._changed.notify_all()


MAX_SIDE_PX = 65535  # the table has two bytes for it
# A JPEG is decoded at 1/2, 1/4 or 1/8 where the result is still this many times the wanted size. On 31
# photos, the mean difference to shrinking the whole image, and the edges left (mean gradient; the whole image
# keeps .93 of Lanczos's): margin 2: 1.5 to 2.1 of 255, .91 to .94; 1.4: 2.0 to 3.1, .83; 1: 2.1 to 3.9, .77
# to .91. Dataset files are kept for years, so sharpness is worth more than speed.
_SCALE_MARGIN = 2


@dataclass(frozen=True)
class Target:
    """The form in which images are stored."""

    short_side: int | None = None  # the most px of the shorter side; None for no limit
    max_side: int | None = None  # the most px of the longer side; None for no limit
    quality: int = 90  # the JPEG quality, in percent
    mode: str = "jpg"  # "jpg", "raw" or "coefficients"
    min_px: int = 0  # images with a shorter side below it, after shrinking, are left out
    # Which JPEGs are encoded anew, "larger" or "all". With "larger" those that cannot be stored byte for
    # byte; with "all" the others too, unless that makes them no smaller.
    reencode: str = "larger"
    # The options --range and --bands, for images of more than 8 bits or three bands.
    range: str | None = None
    bands: str | None = None

    @cached_property
    def reading(self) -> Reading:
        """The range and the bands, for each image."""
        return Reading.of(self.range, self.bands)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) to shrink to, within both limits; nothing is enlarged."""
        scale = 1.0
        if self.short_side:
            scale = min(scale, self.short_side / min(height, width))
        if self.max_side:
            scale = min(scale, self.max_side / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))


@dataclass
class Stored:
    """One sample as it is written to the file."""

    data: bytes
    height: int
    width: int
    mode: int
    how: str  # "passed", "encoded" (raw ones, too) or "mended" (encoded again because libjpeg warned)
    num_clipped: int = 0  # values outside of the range
    scale: Scale | None = None  # what was seen of values of more than 8 bits


_local = threading.local()
_large = MemoryGate()


def _codec() -> Codec | None:
    """Return this thread's codec; None where the C library was not built."""
    if not hasattr(_local, "codec"):
        _local.codec = None if why_missing() else Codec()
    return _local.codec


def require_mode(mode: str) -> None:
    """Raise ValueError where images cannot be stored in a mode here."""
    if mode == "coefficients" and (why := why_missing()):
        raise ValueError(f"--mode coefficients: {why}, which packs them: {remedy()}; or give --mode jpg")


def convert(data: bytes, target: Target) -> Stored:
    """Convert an image file's bytes to their stored form, in any thread. Large ones wait for each other."""
    if not data:
        raise BadImage("empty file")
    status, height, width, components, is_progressive, precision = jpeg_header(data, len(data))
    is_usual = status == HEADER_GOOD and components in (1, 3) and precision == 8
    if target.mode == "coefficients" and is_usual and height * width <= MAX_PIXELS:
        with _large.room_for(height * width):
            if packed := _packed_as_it_is(data, height, width, components, target):
                return packed
    is_plain = components == 3 and precision == 8 and leaves_jpeg(target.reading.bands, components)
    if status != HEADER_GOOD or not is_plain or height * width > MAX_PIXELS:
        with _large.room_for(num_pixels(data, target.reading)):
            image, scale = decode_deep(data, target.reading)
            stored = _packed(_store(_shrink(image, target), target, "encoded"), target)
            return replace(stored, num_clipped=scale.num_outside, scale=scale if scale.is_deep else None)
    with _large.room_for(height * width):
        return _packed(_convert_jpeg(data, height, width, bool(is_progressive), target), target)


def _packed_as_it_is(data: bytes, height: int, width: int, components: int, target: Target) -> Stored | None:
    """Return a JPEG's own coefficients, also of a progressive or grey one; None where others are wanted."""
    is_kept = target.reencode == "larger" and leaves_jpeg(target.reading.bands, components)
    is_kept = is_kept and target.size(height, width) == (height, width) and jpeg_orientation(data) == UPRIGHT
    stored = _packed(Stored(data, height, width, JPG, "passed"), target) if is_kept else None
    return stored if stored and stored.mode == COEFFICIENTS else None


def _packed(stored: Stored, target: Target) -> Stored:
    """Return a JPEG with packed coefficients, if they are wanted and can be packed."""
    codec = _codec() if target.mode == "coefficients" else None
    packed = codec.pack(stored.data) if codec else None
    return replace(stored, data=packed, mode=COEFFICIENTS) if packed else stored


def _convert_jpeg(data: bytes, height: int, width: int, is_progressive: bool, target: Target) -> Stored:
    orientation = jpeg_orientation(data)
    size = target.size(height, width)
    may_pass = (
        target.mode != "raw" and not is_progressive and orientation == UPRIGHT and size == (height, width)
    )
    # Readers of other projects take the Huffman tables of the image before, where there are none.
    may_pass = may_pass and jpeg_scans(data) == SCANS_GOOD
    original = Stored(data, height, width, JPG, "passed") if may_pass else None
    if original and target.reencode == "larger":
        if decodes_cleanly(data, height, width):
            return original
        stored = None
    else:
        stored = _convert_sound(data, height, width, size, orientation, target)
    if stored is None:
        return _store(_shrink(decode_any(data), target), target, "mended" if original else "encoded")
    if original and len(data) <= len(stored.data) and decodes_cleanly(data, height, width):
        return original
    return stored


def store_array(image: np.ndarray, target: Target) -> Stored:
    """Convert an RGB image in memory, uint8 [H, W, 3], to its stored form."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise BadImage(f"array of {image.dtype} {list(image.shape)}; uint8 [H, W, 3] is wanted")
    return _packed(_store(_shrink(image, target), target, "encoded"), target)


def unpacks_cleanly(data: bytes, height: int, width: int) -> bool:
    """Return whether readers decode packed coefficients; raise BadImage where no JPEG can be made of them."""
    jpeg, codec = to_jpeg(data, height, width), _codec()
    return codec.unpacks_cleanly(data, height, width) if codec else decodes_cleanly(jpeg, height, width)


def decodes_cleanly(data: bytes, height: int, width: int) -> bool:
    """Return whether the readers decode the JPEG without an error or warning, at the size of its header."""
    codec = _codec()
    if codec:
        return codec.decodes_cleanly(data, height, width)
    image = decode_plainly(data)  # as readers without the C library do
    return image is not None and image.shape == (height, width, 3)


def _convert_sound(
    data: bytes, height: int, width: int, size: tuple[int, int], orientation: int, target: Target
) -> Stored | None:
    """Convert a JPEG to a size, before it is turned upright; return None after any warning of libjpeg."""
    codec = _codec()
    if codec is None:
        whole = decode_plainly(data)
        if whole is None or whole.shape != (height, width, 3):
            return None
        return _store(turn(shrink(whole, *size), orientation), target, "encoded")
    rows, columns = (side * _SCALE_MARGIN for side in size)
    denominator = next((d for d in (8, 4, 2) if -(-height // d) >= rows and -(-width // d) >= columns), 1)
    if target.mode != "raw" and orientation == UPRIGHT:
        shrunk = codec.shrink_jpeg(data, *size, target.quality, denominator)
        if shrunk is not None:
            return Stored(shrunk, *size, JPG, "encoded")
    is_halved = height >= rows and width >= columns
    image, is_good = codec.decode(data, height, width, denominator, to_shrink=is_halved)
    return _store(turn(shrink(image, *size), orientation), target, "encoded") if is_good else None


def _shrink(image: np.ndarray, target: Target) -> np.ndarray:
    return shrink(image, *target.size(*image.shape[:2]))


def _store(image: np.ndarray, target: Target, how: str) -> Stored:
    height, width = image.shape[:2]
    if max(height, width) > MAX_SIDE_PX:
        raise BadImage(f"{width} x {height} px: a side above {MAX_SIDE_PX} px; shrink with --max-side")
    image = np.ascontiguousarray(image)
    if target.mode == "raw":
        return Stored(image.tobytes(), height, width, RAW, how)
    check_pixels(height, width)  # for arrays: no reader takes a larger JPEG
    codec = _codec()
    data = codec.encode(image, target.quality) if codec else None
    if data is None:
        out = io.BytesIO()
        try:
            Image.fromarray(image).save(out, "JPEG", quality=target.quality)
        except OSError as error:  # a side longer than JPEG's 65,500 px
            raise BadImage(f"{width} x {height} px cannot be encoded ({error})") from None
        data = out.getvalue()
    return Stored(data, height, width, JPG, how)
