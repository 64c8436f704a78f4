"""Values of more than 8 bits against plain arithmetic, in all formats that have them."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from fastpsl.pipelines.image.image_file import convert_pillow, decode_any, decode_deep
from fastpsl.pipelines.interface.dataset import BadImage
from fastpsl.pipelines.interface.reading import PLAIN, Reading
from tests.pipelines.photos import file_of, png_of

GREY = np.linspace(0, 4095, 33 * 47).reshape(33, 47).astype(np.uint16)
WIDE, PLANES = GREY.astype(np.int32) * 5000 - 9**7, {"photometric": "rgb", "planarconfig": "separate"}
RGB = np.stack([GREY, GREY[::-1], np.roll(GREY, 300)], 2)


def png(pixels: np.ndarray, kind: int, *others: bytes) -> bytes:
    """Return 16-bit pixels, uint16 [h, w, c], as a PNG of a kind of colours, with more chunks."""
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    return png_of(b"IHDR" + head, *others, b"IDAT" + zlib.compress(lines), b"IEND")


def tiff(pixels: np.ndarray, byteorder: Any = "<", **options: Any) -> bytes:
    file = io.BytesIO()
    values: dict[str, Any] = {"photometric": "minisblack", **options}
    tifffile.imwrite(file, pixels, byteorder=byteorder, **values)
    return file.getvalue()


def pnm(kind: str, most: int, pixels: np.ndarray) -> bytes:
    head = f"{kind}\n{pixels.shape[1]} {pixels.shape[0]}\n{most}\n".encode()
    if kind in ("P2", "P3"):
        return head + b" ".join(b"%d" % value for value in pixels.ravel())
    return head + pixels.astype(">u2").tobytes()


def saved(pixels: np.ndarray, kind: str) -> bytes:
    return file_of(Image.fromarray(pixels), kind)


def by_hand(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return RGB by Python's own round, pixel by pixel."""
    flat = [min(max(round(255 * (value - low) / (high - low)), 0), 255) for value in values.ravel().tolist()]
    pixels = np.array(flat, np.uint8).reshape(values.shape)
    return pixels if values.ndim == 3 else np.dstack([pixels] * 3)


FILES: dict[str, Callable[[], tuple[bytes, np.ndarray]]] = {
    "png": lambda: (saved(GREY, "PNG"), GREY),
    "png of colours": lambda: (png(RGB, 2), RGB),
    "tiff": lambda: (tiff(GREY), GREY),
    "tiff, big-endian": lambda: (tiff(GREY, ">"), GREY),
    "tiff, compressed": lambda: (tiff(GREY, compression="zlib"), GREY),
    "tiff, compressed, big-endian": lambda: (tiff(GREY, ">", compression="zlib"), GREY),
    "tiff, signed": lambda: (tiff(GREY.astype(np.int16) - 2000), GREY.astype(np.int16) - 2000),
    "tiff, signed, compressed, big-endian": lambda: (
        tiff(GREY.astype(np.int16) - 2000, ">", compression="zlib"), GREY.astype(np.int16) - 2000
    ),
    "tiff of 32 bits": lambda: (tiff(WIDE), WIDE),
    "tiff of 32 bits, compressed, big-endian": lambda: (
        tiff(GREY.astype(np.int32) - 77, ">", compression="zlib"), GREY.astype(np.int32) - 77
    ),
    "tiff of 32 bits without a sign": lambda: (
        tiff(GREY.astype(np.uint32) * 10**6), GREY.astype(np.uint32) * 10**6
    ),
    "float tiff": lambda: (tiff(GREY.astype(np.float32) / 7 - 9), GREY.astype(np.float32) / 7 - 9),
    "float tiff, compressed, big-endian": lambda: (
        tiff(GREY.astype(np.float32) / 7, ">", compression="zlib"), GREY.astype(np.float32) / 7
    ),
    "tiff of colours": lambda: (tiff(RGB, photometric="rgb"), RGB),
    "tiff of colours, big-endian": lambda: (tiff(RGB, ">", photometric="rgb"), RGB),
    "tiff of colours, compressed": lambda: (tiff(RGB, photometric="rgb", compression="zlib"), RGB),
    "tiff of colours, compressed, big-endian": lambda: (
        tiff(RGB, ">", photometric="rgb", compression="zlib"), RGB
    ),
    "tiff of colours, tiled": lambda: (
        tiff(np.tile(RGB, (3, 2, 1)), photometric="rgb", tile=(16, 32)), np.tile(RGB, (3, 2, 1))
    ),
    "pgm": lambda: (pnm("P5", 4095, GREY), GREY),
    "pgm of 16 bits": lambda: (pnm("P5", 65535, GREY), GREY),
    "pgm of text": lambda: (pnm("P2", 4095, GREY), GREY),
    "ppm": lambda: (pnm("P6", 4095, RGB), RGB),
    "jpeg 2000": lambda: (saved(GREY, "JPEG2000"), GREY),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_range_scales_the_files_own_values(name: str) -> None:
    data, values = FILES[name]()
    low, high = float(values.min()), float(values.max())
    limits = (low, high)
    pixels, scale = decode_deep(data, Reading(limits))
    np.testing.assert_array_equal(pixels, by_hand(values, low, high))
    assert pixels.min() == 0 and pixels.max() == 255
    assert (scale.is_deep, scale.low, scale.high, scale.num_outside) == (True, low, high, 0)
    # A narrower one, which is no whole number of steps, clips.
    limits = (low + (high - low) * 0.3, low + (high - low) * 0.71)
    pixels, scale = decode_deep(data, Reading(limits))
    np.testing.assert_array_equal(pixels, by_hand(values, *limits))
    assert scale.num_outside == np.count_nonzero((values < limits[0]) | (values > limits[1])) > 0


def test_alpha_and_transparent_values_stay_over_white() -> None:
    alpha = np.where(np.arange(47) < 20, 0, 65535).astype(np.uint16) * np.ones((33, 1), np.uint16)
    expected = by_hand(RGB, 0, 4095)
    expected[:, :20] = 255
    reading = Reading((0, 4095))
    np.testing.assert_array_equal(decode_any(png(np.dstack([RGB, alpha]), 6), reading), expected)
    expected = by_hand(GREY, 0, 4095)
    expected[:, :20] = 255
    np.testing.assert_array_equal(decode_any(png(np.dstack([GREY, alpha]), 4), reading), expected)
    data = png(RGB, 2, b"tRNS" + RGB[5, 6].astype(">u2").tobytes())
    expected = by_hand(RGB, 0, 4095)
    expected[(RGB == RGB[5, 6]).all(2)] = 255
    np.testing.assert_array_equal(decode_any(data, reading), expected)


def test_white_may_be_zero() -> None:
    data = tiff(GREY, photometric="miniswhite")
    np.testing.assert_array_equal(decode_any(data, Reading((0, 4095))), 255 - by_hand(GREY, 0, 4095))
    np.testing.assert_array_equal(decode_any(data), 255 - by_hand(GREY, 0, 65535))


def test_a_pgm_without_a_range_is_scaled_by_its_largest_value() -> None:
    assert np.abs(decode_any(pnm("P5", 4095, GREY)).astype(int) - by_hand(GREY, 0, 4095)).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "PPM", "WEBP", "GIF", "JPEG2000", "AVIF"])
def test_images_of_8_bits_never_change(kind: str) -> None:
    data = saved((RGB >> 4).astype(np.uint8), kind)
    pixels, scale = decode_deep(data, Reading((3, 9)))
    np.testing.assert_array_equal(pixels, decode_any(data))
    assert not scale.is_deep and not scale.num_outside


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: pnm("P3", 4095, RGB), "a PPM of text: --range does not reach its colours; write it as PNG"),
        (
            lambda: tiff(np.moveaxis(RGB, 2, 0).copy(), compression="zlib", **PLANES),
            "16-bit colours in planes; give --bands 1,2,3",
        ),
        (lambda: tiff(np.full((3, 3), np.nan, np.float32)), "pixels that are no numbers"),
    ],
)  # fmt: skip
def test_what_a_range_does_not_reach_is_refused(make: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        decode_any(make(), Reading((0, 4095)))


def test_what_pillow_reads_wrong_is_refused_without_a_range_too() -> None:
    data = tiff(np.moveaxis(RGB, 2, 0).copy(), **PLANES)
    for reading in (PLAIN, Reading((0, 4095))):
        with pytest.raises(BadImage, match="16-bit colours in planes; give --bands 1,2,3"):
            decode_any(data, reading)


@pytest.mark.parametrize("name", ["png", "png of colours", "tiff", "float tiff", "ppm", "pgm"])
def test_images_of_pillow_are_read_by_a_range(name: str) -> None:
    data, values = FILES[name]()
    limits = float(values.min()), float(values.max())
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(convert_pillow(image, Reading(limits)), by_hand(values, *limits))


@pytest.mark.parametrize(
    ("limits", "bands", "error"),
    [
        ("4095", None, "--range 4095: give auto, or LOW:HIGH, such as 0:4095"),
        ("0:x", None, "--range 0:x: give auto"),
        ("5:5", None, "--range 5:5: LOW must be below HIGH, both finite"),
        ("0:inf", None, "LOW must be below HIGH, both finite"),
        ("nan:1", None, "LOW must be below HIGH, both finite"),
        (None, "1,2", "--bands 1,2: give one or three numbers, counted from 1, such as 1,2,3"),
        (None, "0", "--bands 0: give one or three numbers"),
        (None, "a", "--bands a: give one or three numbers"),
    ],
)
def test_options_that_are_none(limits: str | None, bands: str | None, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Reading.of(limits, bands)


def test_options_and_records_name_the_same_reading() -> None:
    reading = Reading.of("-0.1:4095", "4,3,2")
    assert reading == Reading((-0.1, 4095), (4, 3, 2)) and reading.in_words() == (
        "--range -0.1:4095 --bands 4,3,2"
    )
    assert Reading.of((-0.1, 4095), (4, 3, 2)) == reading == Reading.from_dict(reading.as_dict())
    assert Reading.of() == PLAIN == Reading.from_dict({}) and PLAIN.as_dict() == {} and not PLAIN.in_words()
    assert Reading.of("auto").measures
