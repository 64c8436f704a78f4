"""One image file to what a beton stores: the JPEG itself where nothing has to change, else a new baseline
JPEG, or raw RGB.

Passes byte for byte: a baseline (or extended sequential) 8-bit JPEG of 3 components, upright, of the wanted
size, that the readers' decode call takes without a libjpeg warning. Everything else is decoded, turned
upright by its EXIF orientation, made 8-bit RGB, shrunk (never enlarged) and encoded again without metadata:
- alpha, also of palettes: over white; 16-bit: scaled by 255/65535 (of three channels: the high byte);
  palette, grey, CMYK: Pillow's conversion;
- colour profiles are not applied; of animations and multi-page files the first frame is taken.
"""

import io
import threading
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from fastpsl.pipelines.beton_shard import JPG, RAW
from fastpsl.pipelines.decoders.area import shrink
from fastpsl.pipelines.libffcv import HEADER_GOOD, Codec, jpeg_header, why_missing
from fastpsl.pipelines.plain_jpeg import plain_decoder

# What Pillow may try: no format that starts another program (EPS) or that is no photo.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM")
Image.init()  # all plugins now: Image.open(formats=...) knows only those that are loaded
MAX_SIDE_PX = 65535  # two bytes in the table
MAX_PIXELS = 178_956_970  # Pillow's own limit for what is taken for a decompression bomb
# A JPEG is decoded at 1/2, 1/4 or 1/8 where that is still so many times the wanted size. Mean difference to
# shrinking the whole picture, and edges left (mean gradient; the whole one keeps .93 of Lanczos's), on 31
# photos: 2: 1.5 to 2.1 of 255, .91 to .94; 1.4: 2.0 to 3.1, .83; 1: 2.1 to 3.9, .77 to .91. Betons are kept
# for years: no blur for speed.
_SCALE_MARGIN = 2
_UPRIGHT = 1
_ORIENTATION_TAG = 0x0112


class BrokenImage(Exception):
    """The image cannot be used; the message is the reason, for the quarantine list."""


@dataclass(frozen=True)
class Target:
    """What images become: sides in px (None: as they are), JPEG quality, "jpg" or "raw"."""

    short_side: int | None = None
    max_side: int | None = None
    quality: int = 90
    mode: str = "jpg"

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


def _codec() -> Codec | None:
    """This thread's libffcv codec; None where ffcv is not installed."""
    if not hasattr(_local, "codec"):
        _local.codec = None if why_missing() else Codec()
    return _local.codec


def convert(data: bytes, target: Target) -> Stored:
    """An image file's bytes to what is stored. Raises BrokenImage with the reason; safe to call from many
    threads."""
    if not data:
        raise BrokenImage("empty file")
    status, height, width, components, is_progressive, precision = jpeg_header(
        np.frombuffer(data, np.uint8), len(data)
    )
    how = "encoded"
    if status == HEADER_GOOD and components == 3 and precision == 8 and height * width <= MAX_PIXELS:
        orientation = _jpeg_orientation(data)
        wanted = target.size(height, width)
        may_pass = (
            target.mode == "jpg"
            and not is_progressive
            and orientation == _UPRIGHT
            and wanted == (height, width)
        )
        if may_pass and clean_decode(data, height, width):
            return Stored(data, height, width, JPG, "passed")
        how = "mended" if may_pass else "encoded"
        image = None if may_pass else _decode_shrunk(data, height, width, wanted)
        if image is not None:
            return _store(_turn(image, orientation), target, how)
    return _store(_shrink(_decode_any(data), target), target, how)


def store_array(image: np.ndarray, target: Target) -> Stored:
    """An RGB image in memory, uint8 [H, W, 3], to what is stored."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise BrokenImage(f"array of {image.dtype} {list(image.shape)}; uint8 [H, W, 3] is wanted")
    return _store(_shrink(image, target), target, "encoded")


def _jpeg_orientation(data: bytes) -> int:
    """EXIF orientation, 1 (upright) where there is none or it is nonsense."""
    if b"Exif\x00\x00" not in data:  # 5 us; Pillow's parser takes 200
        return _UPRIGHT
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            orientation = image.getexif().get(_ORIENTATION_TAG, _UPRIGHT)
    except Exception:  # noqa: BLE001  Pillow's parsers raise nearly anything on nonsense, which then says nothing about up
        return _UPRIGHT
    return orientation if orientation in range(1, 9) else _UPRIGHT


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


def _decode_any(data: bytes) -> np.ndarray:
    """Decode any known format by Pillow to upright RGB, uint8 [H, W, 3]."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BrokenImage(f"{image.width} x {image.height} px are more than {MAX_PIXELS:,} pixels")
            image.load()
            return np.asarray(_rgb(ImageOps.exif_transpose(image)))
    except BrokenImage:
        raise
    except Image.UnidentifiedImageError:
        raise BrokenImage(f"no image of a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # noqa: BLE001  Pillow's parsers raise nearly anything on nonsense
        raise BrokenImage(f"{type(error).__name__}: {' '.join(str(error).split())}") from None


def _rgb(image: Image.Image) -> "Image.Image | np.ndarray":
    """To 8-bit RGB, see the module's text."""
    if image.mode == "F":
        raise BrokenImage("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.size and not (0 <= values.min() and values.max() <= 65535):
            raise BrokenImage("32-bit integer pixels beyond 16 bits have no known range")
        grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image).convert(
            "RGB"
        )
    return image.convert("RGB")


def _shrink(image: np.ndarray, target: Target) -> np.ndarray:
    return shrink(image, *target.size(*image.shape[:2]))


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation: 2 to 8 = mirrored, 180, flipped, transposed, 90 right, transverse, 90
    left."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


def _store(image: np.ndarray, target: Target, how: str) -> Stored:
    height, width = image.shape[:2]
    if max(height, width) > MAX_SIDE_PX:
        raise BrokenImage(f"{width} x {height} px: a side above {MAX_SIDE_PX} px; shrink with --max-side")
    image = np.ascontiguousarray(image)
    if target.mode == "raw":
        return Stored(image.tobytes(), height, width, RAW, how)
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
