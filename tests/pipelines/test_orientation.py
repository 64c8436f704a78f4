"""What EXIF, TIFF and XMP say of how an image lies is read alike by all decoders, and as Pillow reads it."""

import io
import os
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from fastpsl.kernels.isotropic import DIAGONAL, ISOTROPIC, margin_px
from fastpsl.kernels.isotropic_loops import isotropic_resize
from fastpsl.pipelines.datasets.open_folder import Folder
from fastpsl.pipelines.decoders import codes
from fastpsl.pipelines.image import image_file
from fastpsl.pipelines.image.image_file import convert_pillow, decode_any, upright_size
from fastpsl.pipelines.interface.dataset import MODE_FILE, MODE_JPEG, SampleTable
from tests.pipelines.decoding import decode, make
from tests.pipelines.photos import DECODERS, area_mean, exif, file_of, jpeg, photo, pil_decode
from tests.pipelines.test_open_folder import every_reader, whole
from tests.pipelines.written import tree

pytestmark = pytest.mark.usefixtures("cache")

PHOTO = photo(7, 90, 130)
TRANSPOSES = (
    None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)  # fmt: skip
BYTE, ASCII, SHORT, LONG, RATIONAL, SIGNED = 1, 2, 3, 4, 5, 8
XMP = b'<x:xmpmeta tiff:Orientation="3"></x:xmpmeta>'


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    method = TRANSPOSES[orientation - 1]
    return image if method is None else np.asarray(Image.fromarray(image).transpose(method))


def entry(order: str, type: int, value: int, num_values: int = 1, tag: int = 0x112) -> bytes:
    """Return an entry of a TIFF's directory; bytes after a short value are not zero."""
    code = {BYTE: "B", ASCII: "B", SHORT: "H", LONG: "I", RATIONAL: "I", SIGNED: "h"}[type]
    field = struct.pack(order + code, value).ljust(4, b"\x05")
    return struct.pack(f"{order}HHI", tag, type, num_values) + field


def exif_of(order: str, *entries: bytes, num: int | None = None) -> bytes:
    """Return EXIF data with a directory of these entries, or one that claims `num`."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    return head + struct.pack(f"{order}H", num or len(entries)) + b"".join(entries) + bytes(4)


def segment(marker: int, data: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + (len(data) + 2).to_bytes(2, "big") + data


def exif_segment(data: bytes) -> bytes:
    return segment(0xE1, b"Exif\0\0" + data)


def heads() -> dict[str, bytes]:
    """Return segments of JPEGs by the orientation; "?" marks those that DALI may read otherwise."""
    cases = {
        f"{orientation}{'' if type == SHORT else '?'} type {type} {order}": exif_segment(
            exif_of(order, entry(order, RATIONAL, 8, tag=0x11A), entry(order, type, orientation))
        )
        for orientation in range(1, 9)
        for type in (BYTE, SHORT, LONG)
        for order in "<>"
    }
    whole_exif = exif_of("<", entry("<", SHORT, 3))
    plain = exif_segment(whole_exif)
    silent = exif_segment(exif_of("<", entry("<", RATIONAL, 8, tag=0x11A)))
    xmp, large = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP), segment(0xFE, bytes(65000))
    return cases | {
        "3 xmp, exif": xmp + plain,
        "3 long head": plain + large,
        "3 behind a long head": large + plain,
        "3 twice in a directory": exif_segment(exif_of("<", entry("<", SHORT, 3), entry("<", SHORT, 6))),
        "3? two segments": plain + exif_segment(exif_of(">", entry(">", SHORT, 6))),
        "3? an entry is missing": exif_segment(exif_of(">", entry(">", SHORT, 3), num=5)),
        "1 out of range": exif_segment(exif_of(">", entry(">", SHORT, 9))),
        "1? signed": exif_segment(exif_of("<", entry("<", SIGNED, 3))),
        "1? two values": exif_segment(exif_of(">", entry(">", SHORT, 3, num_values=2))),
        "1? text": exif_segment(exif_of("<", entry("<", ASCII, 3))),
        "1? only the second segment": silent + plain,
        "1? split over segments": exif_segment(whole_exif[:9]) + exif_segment(whole_exif[9:]),
        "1? no TIFF": exif_segment(b"no TIFF at all"),
        "1? cut": exif_segment(whole_exif[:14]),
        "1 xmp alone": xmp,
        "1 silent exif, xmp": silent + xmp,
    }


@every_reader
def test_what_exif_says_is_read_alike_wherever_it_stands(tmp_path: Path, decoder: str) -> None:
    plain = jpeg(PHOTO)
    cmyk = file_of(Image.fromarray(PHOTO).convert("CMYK"), "JPEG", quality=90)
    files = {f"{name}.jpg": plain[:2] + head + plain[2:] for name, head in heads().items()}
    about_xmp = {name: head for name, head in heads().items() if "xmp" in name}
    files |= {f"{name} CMYK.jpg": cmyk[:2] + head + cmyk[2:] for name, head in about_xmp.items()}
    tree(tmp_path / "flat", files)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* not by DALI")
        warnings.filterwarnings("ignore", module="PIL")  # of EXIF data
        data = Folder(tmp_path / "flat")
        rows = data.rows(np.arange(data.num_samples))
        names = [os.path.basename(path) for path in rows.path]
        odd = ["?" in name or "CMYK" in name for name in names]
        assert rows.mode.tolist() == [MODE_FILE if is_odd else MODE_JPEG for is_odd in odd]
        images, num_fallbacks = whole(data, decoder, 45)
        assert num_fallbacks == (sum(odd) if decoder == "dali" else 0)
        for name, image, height in zip(names, images, rows.height, strict=True):
            upright = turned(pil_decode(cmyk if "CMYK" in name else plain), int(name[0]))
            assert height == upright.shape[0], name
            assert np.abs(image - area_mean(upright, (0, 0, *upright.shape[:2]), 45)).mean() < 1.5, name
            assert decode_any(files[name]).shape == upright.shape, name
            if odd[names.index(name)]:
                np.testing.assert_array_equal(decode_any(files[name]), upright, name)


@pytest.mark.skipif("turbo" not in DECODERS, reason="the C library was not built")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_turned_images_are_cropped_from_their_windows(tmp_path: Path, orientation: int) -> None:
    random = np.random.default_rng(orientation)
    for height, width, kind, size, bound in (
        (131, 187, codes.AREA, 66, 0.52), (131, 187, ISOTROPIC, 30, 1), (131, 187, DIAGONAL, 31, 1),
        (1, 1, codes.AREA, 3, 0.52), (419, 643, codes.AREA, 25, 8),
    ):  # fmt: skip
        path = tmp_path / f"{height}.jpg"
        path.write_bytes(jpeg(photo(orientation, height, width), exif=exif(orientation)))
        image = decode_any(path.read_bytes())
        rows = SampleTable.empty(np.zeros(6, np.int64))
        rows.fd[:], rows.offset[:], rows.num_bytes[:], rows.mode[:] = -1, 0, path.stat().st_size, MODE_JPEG
        rows.height[:], rows.width[:] = image.shape[:2]
        rows.orientation[:], rows.path[:] = orientation, str(path)
        margin = 0 if kind == codes.AREA else int(margin_px(20, size))
        limits = np.array(image.shape[:2]) - 2 * margin
        boxes = []
        for _ in range(2):
            # The last images are large beside their crops, so libjpeg decodes them at 1/4 or 1/8.
            low = limits - limits // 5 if height == 419 else np.ones(2, int)
            sides = random.integers(low, limits + 1, (6, 2)) if kind == codes.AREA else np.full((6, 2), 20)
            starts = margin + random.integers(0, limits - sides + 1)
            boxes.append(np.column_stack([starts, sides, np.full(6, kind)]).astype(np.int32))
        status, outs = decode(make("turbo"), rows, boxes, [size, size])
        assert not status.any()
        for out, places in zip(outs, boxes, strict=True):
            for crop, (top, left, rows_px, columns_px, _) in zip(out, places.tolist(), strict=True):
                if kind == codes.AREA:
                    expected = area_mean(image, (top, left, rows_px, columns_px), size)
                else:
                    expected, is_diagonal = np.empty((size, size, 3), np.uint8), kind == DIAGONAL
                    isotropic_resize(
                        image.reshape(-1), *image.shape[:2], top, left, 20, is_diagonal, expected
                    )
                difference = np.abs(crop - expected.astype(float))
                assert difference.mean() < bound / 2 and np.percentile(difference, 99) < bound + 1e-9


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "old PNG", "WEBP", "AVIF"])
def test_other_formats_are_turned_by_their_exif_alone(tmp_path: Path, kind: str, orientation: int) -> None:
    variants = [(order, type) for order in "<>" for type in (BYTE, SHORT, LONG)]
    image, expected = Image.fromarray(PHOTO), turned(PHOTO, orientation)
    if kind == "AVIF":  # Pillow translates SHORT to the file's own boxes
        variants = [(">", SHORT)]
    for order, type in variants:
        told = exif_of(order, entry(order, type, orientation))
        if kind == "old PNG":
            info = PngInfo()
            info.add_text("Raw profile type exif", f"\nexif\n{len(told):8}\n{told.hex()}\n", zip=True)
            data = file_of(image, "PNG", pnginfo=info)
        else:
            options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"subsampling": "4:4:4"}
            data = file_of(image, kind, exif=told, **options)
        (tmp_path / "x").write_bytes(data)
        assert upright_size(str(tmp_path / "x")) == expected.shape[:2]
        difference = np.abs(decode_any(data).astype(int) - expected).mean()
        assert difference < (3 if kind == "AVIF" else 1e-9)  # a wrong turn would give more than 30


def test_exif_does_not_turn_an_avif_without_boxes() -> None:
    data = file_of(Image.fromarray(PHOTO), "AVIF", exif=exif_of(">", entry(">", SHORT, 6, tag=0x113)))
    told = data.replace(entry(">", SHORT, 6, tag=0x113)[:10], entry(">", SHORT, 6)[:10])
    assert told != data
    np.testing.assert_array_equal(decode_any(told), decode_any(data))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF", "TIFF"])
def test_xmp_turns_nothing(tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {"tiffinfo": {700: XMP}} if kind == "TIFF" else {"xmp": XMP}
    if kind == "PNG":
        options = {"pnginfo": PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    plain, told = (file_of(Image.fromarray(PHOTO), kind, **extra) for extra in ({}, options))
    assert b"tiff:Orientation" in told
    np.testing.assert_array_equal(decode_any(told), decode_any(plain))


def tiff(order: str, type: int, orientation: int, num_values: int = 1) -> bytes:
    """Return PHOTO as an uncompressed TIFF with such a tag, and with XMP of another orientation."""
    height, width, _ = PHOTO.shape
    tags = [(256, LONG, width), (257, LONG, height), (258, SHORT, 8), (259, SHORT, 1), (262, SHORT, 2)]
    tags += [(273, LONG, 8), (0x112, type, orientation), (277, SHORT, 3), (278, LONG, height)]
    tags += [(279, LONG, PHOTO.size)]
    nums = {0x112: num_values}
    entries = [entry(order, kind, value, nums.get(tag, 1), tag=tag) for tag, kind, value in tags]
    entries.append(struct.pack(f"{order}HHII", 700, BYTE, len(XMP), 8 + PHOTO.size))
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + PHOTO.size + len(XMP))
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)
    return head + PHOTO.tobytes() + XMP + directory


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", "<>")
def test_tiffs_are_turned_by_their_tag_alone(tmp_path: Path, order: str, orientation: int) -> None:
    for type, num_values in ((BYTE, 1), (SHORT, 1), (LONG, 1), (SIGNED, 1), (SHORT, 2)):
        data = tiff(order, type, orientation, num_values)
        (tmp_path / "x").write_bytes(data)
        is_told = type != SIGNED and num_values == 1
        expected = turned(PHOTO, orientation if is_told else 1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # of the number of values
            np.testing.assert_array_equal(decode_any(data), expected, f"{type} {num_values}")
            assert upright_size(str(tmp_path / "x")) == expected.shape[:2]


def test_a_big_tiff_is_turned(tmp_path: Path) -> None:
    data = file_of(Image.fromarray(PHOTO), "TIFF", exif=exif(6), big_tiff=True)
    assert data[:4] == b"II+\0"
    (tmp_path / "x").write_bytes(data)
    np.testing.assert_array_equal(decode_any(data), turned(PHOTO, 6))
    assert upright_size(str(tmp_path / "x")) == (130, 90)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["", "JPEG", "PNG", "TIFF"])
def test_a_pil_image_is_turned_by_the_tag_that_is_set(kind: str, orientation: int) -> None:
    """Pillow's own `exif_transpose` does so, too."""
    for is_loaded in (False, True):
        image = Image.fromarray(PHOTO)
        if kind:
            image = Image.open(io.BytesIO(file_of(image, kind, exif=exif(6))))
        if is_loaded:
            image.load()
        image.getexif()[0x112] = orientation
        first = convert_pillow(image)
        np.testing.assert_array_equal(first, np.asarray(ImageOps.exif_transpose(image)))
        np.testing.assert_array_equal(convert_pillow(image), first)


def test_a_tag_that_is_deleted_turns_no_pil_image() -> None:
    image = Image.open(io.BytesIO(jpeg(PHOTO, exif=exif(6))))
    del image.getexif()[0x112]
    assert convert_pillow(image).shape == PHOTO.shape


def test_an_orientation_behind_the_pixels_is_found_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    data = file_of(Image.fromarray(photo(0, 30, 50)), "PNG", exif=exif(6))
    start, end = data.index(b"eXIf") - 4, data.index(b"IDAT") - 4
    path.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    assert decode_any(path.read_bytes()).shape == (50, 30, 3)
    for block_bytes in range(9, 40):
        monkeypatch.setattr(image_file, "_BLOCK_BYTES", block_bytes)
        assert upright_size(str(path)) == (50, 30)
