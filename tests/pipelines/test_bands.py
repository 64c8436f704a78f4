"""Bands beyond those of a colour space are named and refused, and the chosen ones are the file's values."""

import io
import struct
import zlib
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from fastpsl.console.installed import install
from fastpsl.pipelines.beton.encode import Target, convert
from fastpsl.pipelines.image import bands
from fastpsl.pipelines.image.image_file import convert_pillow, decode_any, num_pixels, upright_size
from fastpsl.pipelines.interface.dataset import BadImage
from fastpsl.pipelines.interface.reading import PLAIN, Reading
from tests.faults.mutations import mutated
from tests.pipelines.photos import file_of, jpeg, photo
from tests.pipelines.readers import refused

needs_tifffile = pytest.mark.skipif(bands.is_missing("tifffile"), reason="needs tifffile")
_FORMATS = {"u": 1, "i": 2, "f": 3}
DEEP = np.random.default_rng(0).integers(0, 1 << 16, (37, 50, 13)).astype(np.uint16)


def tiff(
    values: np.ndarray, photometric: int = 1, extra: int | None = 0, order: Literal["<", ">"] = "<",
    is_big: bool = False,
    is_planar: bool = False, tile: tuple[int, int] | None = None, rows: int = 10, compression: int = 1,
    predictor: int = 1, tags: dict[int, int] | None = None,
) -> bytes:  # fmt: skip
    """Return a TIFF of values [h, w, bands], in strips or in tiles of (height, width)."""
    height, width, num_bands = values.shape
    bits, num_colours = values.dtype.itemsize * 8, 3 if photometric in (2, 6) else 1
    planes = [values[..., [i]] for i in range(num_bands)] if is_planar else [values]
    high, wide = tile or (rows, width)
    pieces = []
    for plane in planes:
        for top in range(0, height, high):
            for left in range(0, width, wide):
                piece = plane[top : top + high, left : left + wide]
                if tile:
                    missing = high - piece.shape[0], wide - piece.shape[1]
                    piece = np.pad(piece, ((0, missing[0]), (0, missing[1]), (0, 0)))
                if predictor == 2:
                    piece = np.diff(piece, axis=1, prepend=np.zeros_like(piece[:, :1]))
                data = piece.astype(values.dtype.newbyteorder(order)).tobytes()
                pieces.append(zlib.compress(data) if compression != 1 else data)
    entries: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [bits] * num_bands), 259: ("H", [compression]),
        262: ("H", [photometric]), 277: ("H", [num_bands]), 284: ("H", [1 + is_planar]),
        317: ("H", [predictor]), 339: ("H", [_FORMATS[values.dtype.kind]] * num_bands),
    }  # fmt: skip
    if extra is not None and num_bands > num_colours:
        entries[338] = "H", [extra] * (num_bands - num_colours)
    if tile:
        entries |= {322: ("I", [wide]), 323: ("I", [high])}
    else:
        entries[278] = "I", [rows]
    places, sizes = (324, 325) if tile else (273, 279)
    entries |= {places: ("I", [0] * len(pieces)), sizes: ("I", [len(piece) for piece in pieces])}
    entries |= {tag: ("H" if tag != 256 else "I", [value]) for tag, value in (tags or {}).items()}
    offset, field, start = ("Q", 8, 16) if is_big else ("I", 4, 8)
    after = start + (8 if is_big else 2) + len(entries) * (20 if is_big else 12) + field
    widths = {"I": 4, "H": 2}
    at = after + sum(len(v) * widths[c] for c, v in entries.values() if len(v) * widths[c] > field)
    for i, stored in enumerate(pieces):
        entries[places][1][i] = at
        at += len(stored)
    head, tail = b"", b""
    for tag, (code, numbers) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        if len(packed) > field:
            where = struct.pack(order + offset, after + len(tail))
            tail += packed
        else:
            where = packed.ljust(field, b"\0")
        head += struct.pack(f"{order}HH{offset}", tag, 4 if code == "I" else 3, len(numbers)) + where
    name, number = (b"II", "*+") if order == "<" else (b"MM", "*+")
    begin = name + struct.pack(order + "H", ord(number[is_big]))
    begin += struct.pack(order + "HHQ", 8, 0, 16) if is_big else struct.pack(order + "I", 8)
    count = struct.pack(order + ("Q" if is_big else "H"), len(entries))
    return begin + count + head + bytes(field) + tail + b"".join(pieces)


def as_bytes(values: np.ndarray, chosen: tuple[int, ...]) -> np.ndarray:
    """Return the chosen bands of 16-bit values as 8 bits, [h, w, 3]."""
    scaled = np.rint(values[..., [band - 1 for band in chosen]] * (255 / 65535)).astype(np.uint8)
    return np.broadcast_to(scaled, (*scaled.shape[:2], 3))


EIGHT = (DEEP >> 8).astype(np.uint8)


@pytest.mark.parametrize(
    ("values", "photometric", "extra", "name", "example"),
    [
        (EIGHT[..., :4], 2, 0, "4 bands of uint8", "1,2,3"),
        (DEEP[..., :4], 2, 0, "4 bands of uint16", "1,2,3"),
        (DEEP[..., :4], 2, None, "4 bands of uint16", "1,2,3"),
        (EIGHT[..., :6], 2, 0, "6 bands of uint8", "1,2,3"),
        (EIGHT[..., :5], 2, 2, "5 bands of uint8", "1,2,3"),
        (EIGHT[..., :5], 5, 0, "5 bands of uint8", "1,2,3"),
        (EIGHT[..., :2], 1, 0, "2 bands of uint8", "1"),
        (EIGHT[..., :2], 3, 0, "2 bands of uint8", "1"),
        (DEEP[..., :2], 1, 0, "2 bands of uint16", "1"),
        (DEEP, 1, None, "13 bands of uint16", "1,2,3"),
        (DEEP.astype(np.float32), 1, 0, "13 bands of float32", "1,2,3"),
        (DEEP[..., :1].astype(np.float64), 1, 0, "1 band of float64", "1"),
    ],
)
@pytest.mark.parametrize("is_planar", [False, True])
def test_bands_that_are_no_colours_are_named(
    values: np.ndarray, photometric: int, extra: int, name: str, example: str, is_planar: bool, tmp_path: Path
) -> None:
    data = tiff(values, photometric, extra, is_planar=is_planar)
    (tmp_path / "x").write_bytes(data)
    ways = decode_any, num_pixels, lambda data: convert(data, Target())
    for read in (*ways, lambda _: upright_size(str(tmp_path / "x"))):
        with pytest.raises(BadImage) as caught:
            read(data)
        assert str(caught.value) == f"a TIFF of {name}; choose one or three of them, as by --bands {example}"


def test_alpha_is_alpha_where_the_file_says_it_or_nothing() -> None:
    rgb, alpha = EIGHT[..., :3].astype(int), EIGHT[..., 3:4].astype(int)
    expected = (rgb * alpha + 255 * (255 - alpha)) / 255
    for extra in (2, None):
        assert np.abs(decode_any(tiff(EIGHT[..., :4], 2, extra)) - expected).max() <= 1
    assert np.abs(decode_any(tiff(DEEP[..., :4], 2, 2)) - expected).max() <= 1
    grey = (EIGHT[..., :1] * alpha + 255 * (255 - alpha)) / 255
    assert np.abs(decode_any(tiff(EIGHT[..., [0, 3]], 1, 2)) - grey).max() <= 1


def test_an_image_that_pillow_has_cut_is_refused() -> None:
    image = Image.open(io.BytesIO(tiff(EIGHT[..., :4], 2)))
    with refused("a TIFF of 4 bands of uint8, which Pillow has dropped some of", by=BadImage):
        convert_pillow(image)


@needs_tifffile
@pytest.mark.parametrize("layout", [{}, {"is_planar": True}])
@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("is_big", [False, True])
def test_chosen_bands_are_those_of_the_file(
    layout: dict[str, Any], tile: tuple[int, int] | None, order: str, is_big: bool, tmp_path: Path
) -> None:
    whole: dict[str, Any] = {**layout, "tile": tile, "order": order, "is_big": is_big}
    for chosen in ((4, 2, 13), (7,)):
        expected = as_bytes(DEEP, chosen)
        for compression, predictor in ((1, 1), (8, 1), (32946, 2)):
            more: dict[str, Any] = {"compression": compression, "predictor": predictor}
            np.testing.assert_array_equal(
                decode_any(tiff(DEEP, **whole, **more), Reading(None, chosen)), expected
            )
        eight = EIGHT[..., [band - 1 for band in chosen]]
        read = decode_any(tiff(EIGHT, **whole), Reading((5, 6), chosen))  # the range is for deeper values
        np.testing.assert_array_equal(read, np.broadcast_to(eight, expected.shape))
    (tmp_path / "x").write_bytes(tiff(DEEP, **whole, tags={274: 6}))
    assert upright_size(str(tmp_path / "x"), Reading(None, (1,))) == (50, 37)
    turned = decode_any((tmp_path / "x").read_bytes(), Reading(None, (4, 2, 13)))
    np.testing.assert_array_equal(turned, np.rot90(as_bytes(DEEP, (4, 2, 13)), -1))


@needs_tifffile
def test_values_of_all_types_become_8_bits_by_the_range() -> None:
    chosen, low = (4, 2, 13), DEEP.astype(np.int64) - 32768
    for values, limits in (
        (low.astype(np.int16), (-32768, 32767)), (low.astype(np.int32), (-32768, 32767)),
        (low.astype(np.float32), (-32768, 32767)), (DEEP.astype(np.uint32), None), (DEEP, (0, 65535)),
        (DEEP / 65535, (0, 1)),
    ):  # fmt: skip
        read = decode_any(tiff(values), Reading(limits, chosen))
        np.testing.assert_array_equal(read, as_bytes(DEEP, chosen))
    with refused("floating-point pixels have no known range", by=BadImage):
        decode_any(tiff(DEEP.astype(np.float32)), Reading(None, chosen))


@needs_tifffile
def test_a_stack_of_pages_is_no_stack_of_bands() -> None:
    pages = [Image.fromarray(EIGHT[..., i]) for i in range(3)]
    data = file_of(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(decode_any(data, Reading(None, (1,)))[..., 0], EIGHT[..., 0])
    with refused("1 band", "has no band 3", by=BadImage):
        decode_any(data, Reading(None, (1, 2, 3)))


@needs_tifffile
def test_bands_become_a_dataset_file() -> None:
    reading = Reading((0, 10_000), (4, 3, 2))
    target = Target(mode="raw", range="0:10000", bands="4,3,2")
    stored = convert(tiff(DEEP // 7), target)
    expected = np.rint((DEEP // 7)[..., [3, 2, 1]] * 255.0 / 10_000).astype(np.uint8)
    assert stored.data == expected.tobytes() and (stored.height, stored.width) == (37, 50)
    assert num_pixels(tiff(DEEP), reading) == 37 * 50 * 3  # of RGB, in the memory that they take


def test_colours_of_other_formats_are_bands() -> None:
    image, rgba = photo(1, 37, 50), Image.fromarray(EIGHT[..., :4])
    for kind in ("PNG", "TIFF", "BMP"):
        data = file_of(Image.fromarray(image), kind)
        np.testing.assert_array_equal(decode_any(data, Reading(None, (3, 2, 1))), image[..., ::-1])
        np.testing.assert_array_equal(decode_any(data, Reading(None, (2,)))[..., 0], image[..., 1])
        with refused("an image of 3 bands (RGB) has no band 4", by=BadImage):
            decode_any(data, Reading(None, (4,)))
    read = decode_any(file_of(rgba, "PNG"), Reading(None, (4, 1, 2)))  # alpha is a band as it is
    np.testing.assert_array_equal(read, EIGHT[..., [3, 0, 1]])
    np.testing.assert_array_equal(convert_pillow(rgba, Reading(None, (4, 1, 2))), EIGHT[..., [3, 0, 1]])
    grey = file_of(Image.fromarray(image[..., 0]), "PNG")
    np.testing.assert_array_equal(decode_any(grey, Reading(None, (1,))), decode_any(grey))
    with refused("an image of 1 band (L) has no band 3", by=BadImage):
        decode_any(grey, Reading(None, (1, 2, 3)))


def test_a_jpeg_passes_where_its_colours_are_the_bands() -> None:
    data = jpeg(photo(1, 37, 50))
    assert convert(data, Target(bands="1,2,3")).data == data
    swapped = convert(data, Target(mode="raw", bands="3,2,1"))
    plain = np.frombuffer(convert(data, Target(mode="raw")).data, np.uint8).reshape(37, 50, 3)
    assert swapped.data == np.ascontiguousarray(plain[..., ::-1]).tobytes()


def test_a_jpeg_2000_says_which_band_is_alpha() -> None:
    rgba = Image.fromarray(EIGHT[..., :4])
    data = file_of(rgba, "JPEG2000", irreversible=False)
    at = data.index(b"cdef\0\4") + 6 + 3 * 6
    assert data[at : at + 4] == b"\0\3\0\1"  # the fourth is alpha
    unsaid, unknown = data.replace(b"cdef", b"free"), data[: at + 2] + b"\xff\xff" + data[at + 4 :]
    np.testing.assert_array_equal(decode_any(unsaid), decode_any(data))
    with refused("a JPEG 2000 of 4 bands of uint8; choose one or three of them", by=BadImage):
        decode_any(unknown)
    np.testing.assert_array_equal(decode_any(unknown, Reading(None, (4, 2, 1))), EIGHT[..., [3, 1, 0]])
    bare = file_of(rgba, "JPEG2000", no_jp2=True)
    assert decode_any(bare).shape == (37, 50, 3)
    at = bare.index(b"\xff\x51") + 2 + 36
    for more in (PLAIN, Reading(None, (1,))):
        with refused("a JPEG 2000 of 5 bands of uint8, of which none can be chosen", by=BadImage):
            decode_any(bare[:at] + b"\0\5" + bare[at + 2 : at + 14] + b"\7\1\1" + bare[at + 14 :], more)


@needs_tifffile
@pytest.mark.parametrize(
    "kind", ["cut", "places", "large", "tile", "bomb", "same", "codec", "depth", "planes"]
)
def test_false_claims_are_refused_before_memory_is_taken(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "_MAX_BYTES", 40_000)
    data, word = tiff(DEEP), "whose strips or tiles are not all there"
    match kind:
        case "cut":
            data = data[:-1]
        case "places":
            data = tiff(DEEP, tags={278: 1})
        case "large":
            data, word = tiff(DEEP, rows=37), "of 48,100 bytes in one piece; cut it into tiles"
        case "tile":
            data, word = tiff(DEEP, tile=(16, 16), tags={322: 60_000}), "bytes in one piece"
        case "bomb":
            zeros = np.zeros_like(DEEP)
            small, large = zlib.compress(bytes(13_000)), zlib.compress(bytes(13_000_000))
            data, word = tiff(zeros, compression=8), "holds more than its place"
            data = tiff_with(data, small, large)
        case "same":  # all strips are the whole file
            at = data.index(struct.pack("<HHI", 279, 4, 4)) + 8
            (where,) = struct.unpack_from("<I", data, at)
            data = data[:where] + struct.pack("<4I", *[len(data) - 9_500] * 4) + data[where + 16 :]
        case "codec":
            data, word = tiff(DEEP, tags={259: 7}), "compressed by JPEG, which cannot be read"
        case "depth":
            data, word = tiff(DEEP, tags={32997: 9}), "a kind that is not read"
        case "planes":
            data, word = tiff(DEEP, tags={284: 3}), "a kind that is not read"
    with refused(word, by=BadImage):
        decode_any(data, Reading(None, (1, 2, 3)))


def tiff_with(data: bytes, old: bytes, new: bytes) -> bytes:
    """Return a TIFF whose first strip, `old`, is another one at its end."""
    at, where = data.index(old), len(data)
    places, sizes = (data.index(struct.pack("<HHI", tag, 4, 4)) + 8 for tag in (273, 279))
    (first_place,), (first_size,) = (struct.unpack_from("<I", data, each) for each in (places, sizes))
    assert struct.unpack_from("<I", data, first_place) == (at,)
    changed = bytearray(data + new)
    struct.pack_into("<I", changed, first_place, where)
    struct.pack_into("<I", changed, first_size, len(new))
    return bytes(changed)


def test_packages_are_named_where_they_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bands, "is_missing", lambda package: package == "imagecodecs")
    (tmp_path / "x").write_bytes(data := tiff(DEEP, tags={259: 5}))
    for read in (
        lambda: decode_any(data, Reading(None, (1,))),
        lambda: upright_size(str(tmp_path / "x"), Reading(None, (1,))),
    ):
        with refused("a TIFF of 13 bands of uint16, compressed by LZW; pip install imagecodecs", by=BadImage):
            read()
    monkeypatch.setattr(bands, "is_missing", lambda package: True)
    with pytest.raises(BadImage) as caught:
        decode_any(tiff(DEEP), Reading(None, (1,)))
    command = install("tiff")
    assert str(caught.value) == f"bands of a TIFF need a package; {command} installs it"


@needs_tifffile
def test_200_mutated_tiffs(capfd: pytest.CaptureFixture[str]) -> None:
    """Each is refused in a line, or read to the last pixel, and nothing is printed."""
    kinds = [tiff(DEEP), tiff(DEEP, tile=(16, 16), compression=8, is_planar=True)]
    kinds.append(tiff(DEEP, order=">", is_big=True))
    random, num_refused = Random(1), 0
    for i in range(200):
        try:
            assert decode_any(mutated(kinds[i % 3], random), Reading(None, (4, 2, 13))).shape[2] == 3
        except BadImage as error:
            num_refused += 1
            assert str(error) and "\n" not in str(error)
    assert 20 < num_refused < 200 and not capfd.readouterr().err
