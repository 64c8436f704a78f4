"""Samples of more than 8 bits: the values that a file has, and how a range of them becomes 8 bits.

Pillow gives grey ones whole, but scales those of a PGM by its largest value. Of colours it keeps the high
bytes. They are decoded twice, the second time as if their bytes were in the other order, for the low bytes.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from fastpsl.console.words import warn
from fastpsl.pipelines.interface.dataset import BadImage
from fastpsl.pipelines.interface.reading import range_text

_FULL = 65535  # the value that becomes 255 without a range
BYTE = 8  # bits
_CODESTREAM = b"\xff\x4f\xff\x51"  # the beginning of JPEG 2000's own bytes
_OF_COLOURS = re.compile("(RGB|RGBA|RGBX|RGBa|CMYK|LA);16[BLN]")
# libtiff gives the machine's order of bytes, and Pillow reads some of these in the file's.
_OF_LIBTIFF = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
_BITS, _PHOTOMETRIC, _LAYOUT = 258, 262, 284  # tags of TIFF
_WHITE_IS_ZERO, _IN_PLANES = 0, 2  # values of the last two


class Scale:
    """The way from an image's deep values to 8 bits, which notes the values that it has seen.

    Attributes:
        range: The values that become 0 and 255; None for all that 16 bits hold.
        is_deep: Whether the image has more than 8 bits, as far as Pillow tells.
        low: The least value.
        high: The greatest value.
        full: The value that becomes 255 without a range.
        num_outside: The number of values outside of the range, which are clipped.
    """

    def __init__(self, range: tuple[float, float] | None = None) -> None:
        self.range = range
        self.is_deep, self.low, self.high, self.full, self.num_outside = False, np.inf, -np.inf, _FULL, 0
        self._inverts = self._is_unsigned = self._is_grey_alpha = False
        self._clear: tuple[int, ...] | None = None
        self._shift = 0

    def prepare(self, image: Any, data: bytes, again: Callable[[], Any]) -> Any:
        """Have Pillow give a file's own values; return a second image with the low bytes of colours, or None.

        Args:
            image: The image, before it is loaded.
            data: The file's bytes.
            again: Opens the same image once more.

        Raises:
            BadImage: Its values cannot be had.
        """
        tiles, is_grey = getattr(image, "tile", []), image.mode == "F" or image.mode.startswith("I")
        if image.format == "TIFF":
            self._inverts = is_grey and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
            is_in_planes = max(image.tag_v2.get(_BITS, (8,))) > 8 and image.tag_v2.get(_LAYOUT) == _IN_PLANES
            if is_in_planes and (len(tiles) > 1 or self.range):  # Pillow takes single bytes of them
                raise BadImage("16-bit colours in planes; give --bands 1,2,3, or write it otherwise")
            tiles = image.tile = [_of_machine(tile) for tile in tiles]
            self._is_unsigned = any(_raw(tile) == "I;32N" for tile in tiles)
        self.is_deep = is_grey or any(map(_is_deep_colour, tiles))
        if self.range is None:
            return None
        if (bits := _hidden_bits(data, image.format)) > BYTE:
            if not is_grey:
                raise _out_of_reach(f"{image.format} of {bits} bits")
            self._shift, self.full = 16 - bits, (1 << bits) - 1
        if image.format == "PPM":
            tiles = image.tile = [self._of_ppm(tile, image.mode) for tile in tiles]
        if not any(map(_is_deep_colour, tiles)):
            return None
        transparency = image.info.get("transparency")
        self._clear = transparency if isinstance(transparency, tuple) else None
        self._is_grey_alpha = _raw(tiles[0]).startswith("LA")
        second = again()
        second.tile = list(map(_of_low_bytes, tiles))
        return second

    def _of_ppm(self, tile: Any, mode: str) -> Any:
        """Return a tile of a PPM or PGM that is not scaled by its largest value."""
        if tile.codec_name == "raw" or (most := tile.args[-1]) <= 255:
            return tile
        self.is_deep, self.full = True, most
        if tile.codec_name == "ppm":
            return tile._replace(codec_name="raw", args=("I;16B" if mode == "I" else "RGB;16B", 0, 1))
        if mode != "I":
            raise _out_of_reach("a PPM of text")
        return tile._replace(args=(tile.args[0], _FULL))

    def grey(self, values: np.ndarray) -> np.ndarray:
        """Return deep values as 8 bits, uint8 of the same shape.

        Raises:
            BadImage: The values have no known range, or one of them is NaN.
        """
        self.is_deep = True
        if self._is_unsigned:
            values = values.view(np.uint32)
        if self._shift:
            values = values >> self._shift
        if not values.size:
            return values.astype(np.uint8)
        with np.errstate(all="ignore"):
            low, high = float(values.min()), float(values.max())
            if np.isnan(low):  # the least of values is NaN if one of them is
                raise BadImage("floating-point pixels that are no numbers (NaN)")
            self._note(low, high)
            if self.range is None and values.dtype.kind == "f":
                raise BadImage("floating-point pixels have no known range; give --range auto or LOW:HIGH")
            if self.range is None and not (low >= 0 and high <= _FULL):
                raise BadImage(
                    "32-bit integer pixels beyond 16 bits have no known range; give --range auto or LOW:HIGH"
                )
            least, most = self.range or (0, _FULL)
            if low < least or high > most:
                self.num_outside += int(np.count_nonzero((values < least) | (values > most)))
            scaled = np.rint(np.clip(255 * (values.astype(np.float64) - least) / (most - least), 0, 255))
        pixels = scaled.astype(np.uint8)
        return 255 - pixels if self._inverts else pixels

    def colours(self, image: Image.Image, low: Image.Image | None) -> Image.Image:
        """Return an image of high bytes, with the image of its low bytes, as 8 bits by the range.

        Without the low bytes the image stays, and its values are noted as far as they are known.
        """
        pixels = np.asarray(image)
        if low is None:
            if pixels.size and image.mode.startswith("RGB"):
                self._note(256 * float(pixels[..., :3].min()), 256 * float(pixels[..., :3].max()) + 255)
            return image
        others = np.asarray(low)
        alpha = pixels[..., 3] if pixels.shape[2] > 3 else None  # by its 16 bits
        if self._is_grey_alpha:  # the four bytes as they are
            pixels, others = others[..., [0, 0, 0]], others[..., [1, 1, 1]]
        values = pixels[..., :3].astype(np.uint16) << 8 | others[..., :3]
        if self._clear is not None:
            alpha = np.where((values == self._clear).all(2), 0, 255).astype(np.uint8)
        rgb = self.grey(values)
        return Image.fromarray(rgb if alpha is None else np.dstack([rgb, alpha]))

    def _note(self, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)

    def add(self, other: "Scale | None") -> None:
        """Note what was seen of another image, too."""
        if other and other.is_deep:
            self.is_deep, self.full = True, max(self.full, other.full)
            self._note(other.low, other.high)

    def warn_if_dark(self, source: object) -> None:
        """Warn as the function of this name where there are deep values, and no range was given."""
        if self.is_deep and self.range is None:
            warn_if_dark(source, self.low, self.high, self.full)


def warn_if_dark(source: object, low: float, high: float, full: float) -> None:
    """Warn of values, from `low` to `high`, that fill less than a quarter of what is read as 0 to `full`."""
    if low >= 0 and 4 * high < full:
        limits = range_text((low, high)) if low < high else "LOW:HIGH"
        warn(
            f"{source}: images of more than 8 bits have values {low:,g} to {high:,g} and are read as "
            f"0 to {full:,g}, nearly black; give --range auto, or --range {limits}",
            stacklevel=3,
        )


def _out_of_reach(what: str) -> BadImage:
    return BadImage(f"{what}: --range does not reach its colours; write it as PNG, or as TIFF not in planes")


def _raw(tile: Any) -> str:
    """Return in what form a tile's pixels are stored, as Pillow calls it."""
    return str(tile.args if isinstance(tile.args, str) else tile.args[0])


def _as(tile: Any, raw: str) -> Any:
    """Return the tile with another name for the form in which its pixels are stored."""
    return tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))


def _is_deep_colour(tile: Any) -> bool:
    return isinstance(tile.args, str | tuple) and bool(_OF_COLOURS.fullmatch(_raw(tile)))


def _of_machine(tile: Any) -> Any:
    """Return a tile of a TIFF in the order of bytes that its decoder gives."""
    return _as(tile, _OF_LIBTIFF.get(_raw(tile), _raw(tile))) if tile.codec_name == "libtiff" else tile


def _of_low_bytes(tile: Any) -> Any:
    """Return a tile that Pillow decodes to its low bytes; of grey with alpha, to all four bytes."""
    name, order = _raw(tile).split(";16")
    if name == "LA":
        return _as(tile, "RGBA")
    if name not in ("RGB", "RGBA", "RGBX"):
        raise _out_of_reach(f"16-bit {name}")
    return _as(tile, f"{name};16{'B' if order in 'LN' else 'L'}")


def _hidden_bits(data: bytes, format: str | None) -> int:
    """Return the bits of a sample in formats of which Pillow does not tell them; 8 for others."""
    if format == "JPEG2000" and (start := data.find(_CODESTREAM)) >= 0:
        return (data[start + 42] & 127) + 1 if len(data) > start + 42 else BYTE
    if format in ("AVIF", "HEIF") and (start := data.find(b"pixi")) >= 0:
        return data[start + 9] if len(data) > start + 9 else BYTE
    return BYTE
