"""Image files of each kind, and large ones, become what Pillow or plain arithmetic gives, or are refused."""

import base64
import io
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, final

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from fastpsl.console.installed import install
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.beton import encode
from fastpsl.pipelines.beton.encode import (
    BYTES_PER_PIXEL,
    JPG,
    LARGE_PIXELS,
    RAW,
    MemoryGate,
    Stored,
    Target,
    convert,
    store_array,
)  # fmt: skip
from fastpsl.pipelines.beton.output import bad_path
from fastpsl.pipelines.beton.verify import verify
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets import open_folder as folder_module
from fastpsl.pipelines.datasets.open_folder import Folder
from fastpsl.pipelines.decoders import libffcv
from fastpsl.pipelines.image import image_file, libturbo
from fastpsl.pipelines.image.bands import is_missing
from fastpsl.pipelines.image.codec import shrink
from fastpsl.pipelines.image.image_file import convert_pillow, decode_any, num_pixels, upright_size
from fastpsl.pipelines.image.jpeg import HEADER_GOOD, jpeg_header
from fastpsl.pipelines.interface.dataset import MAX_FILE_BYTES, MODE_FILE, MODE_JPEG, BadImage
from fastpsl.pipelines.interface.source import Sample
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import ViewSpec
from tests.faults.mutations import mutated
from tests.pipelines.memory import own_memory
from tests.pipelines.photos import (
    COMPILED,
    DECODERS,
    area_mean,
    exif,
    file_of,
    jpeg,
    needs_ffcv,
    photo,
    pil_decode,
    png_of,
)  # fmt: skip
from tests.pipelines.readers import refused
from tests.pipelines.written import tree, write_folder

PHOTO = photo(1, 90, 121)
FINE = Target(quality=98)


def mean_difference(stored: Stored, expected: np.ndarray) -> float:
    pixels = np.frombuffer(stored.data, np.uint8)
    converted = pixels.reshape(expected.shape) if stored.mode == RAW else pil_decode(stored.data)
    assert converted.shape == expected.shape == (stored.height, stored.width, 3)
    return float(np.abs(converted.astype(float) - expected).mean())


def is_plain_jpeg(stored: Stored) -> bool:
    header = jpeg_header(stored.data, len(stored.data))
    has_metadata = b"Exif\x00\x00" in stored.data
    return header == (HEADER_GOOD, stored.height, stored.width, 3, 0, 8) and not has_metadata


def test_a_plain_jpeg_passes_byte_for_byte() -> None:
    variants: list[dict[str, Any]] = [
        {}, {"subsampling": 0}, {"quality": 35}, {"optimize": True}, {"icc_profile": b"some profile"},
    ]  # fmt: skip
    for options in variants:
        data = jpeg(PHOTO, **options)
        stored = convert(data, Target(short_side=90, max_side=121))
        assert stored == Stored(data, 90, 121, JPG, "passed")


def with_restart(data: bytes) -> bytes:
    """Return a JPEG with a misplaced restart marker, at which libjpeg warns."""
    return data[: len(data) // 2] + b"\xff\xd5" + data[len(data) // 2 + 2 :]


def as_pillow_decodes(data: bytes) -> tuple[bytes, np.ndarray]:
    return data, pil_decode(data)


GREY = np.asarray(Image.fromarray(PHOTO).convert("L"))
RGBA = Image.fromarray(np.dstack([PHOTO, np.tile(np.linspace(0, 255, 121).astype(np.uint8), (90, 1))]))
OVER_WHITE = np.asarray(RGBA)[..., 3:] / 255.0 * PHOTO + 255.0 - np.asarray(RGBA)[..., 3:]
GREY_16 = (GREY.astype(np.uint16) << 8) + 37
GREY_8 = np.dstack([GREY_16 * (255 / 65535)] * 3)


def animation() -> tuple[bytes, np.ndarray]:
    first, second = (Image.fromarray(photo(seed, 90, 121)).quantize(64) for seed in (1, 2))
    return file_of(first, "GIF", save_all=True, append_images=[second]), np.asarray(first.convert("RGB"))


def with_hole(kind: str) -> tuple[bytes, np.ndarray]:
    image = Image.fromarray(PHOTO).quantize(64)
    hole = np.asarray(image)[..., None] == 5
    assert hole.any()
    return file_of(image, kind, transparency=5), np.where(hole, 255, np.asarray(image.convert("RGB")))


def avif_with_alpha() -> tuple[bytes, np.ndarray]:
    data = file_of(RGBA, "AVIF")
    pixels = np.asarray(Image.open(io.BytesIO(data))).astype(float)
    assert np.ptp(pixels[..., 3]) > 200
    return data, 255 + (pixels[..., :3] - 255) * pixels[..., 3:] / 255


KINDS: dict[str, Callable[[], tuple[bytes, np.ndarray]]] = {
    "progressive": lambda: as_pillow_decodes(jpeg(PHOTO, progressive=True)),
    "grey jpeg": lambda: as_pillow_decodes(file_of(Image.fromarray(GREY), "JPEG")),
    "CMYK jpeg": lambda: as_pillow_decodes(file_of(Image.fromarray(PHOTO).convert("CMYK"), "JPEG")),
    "png": lambda: (file_of(Image.fromarray(PHOTO), "PNG"), PHOTO),
    "webp": lambda: (file_of(Image.fromarray(PHOTO), "WEBP", lossless=True), PHOTO),
    "bmp": lambda: (file_of(Image.fromarray(PHOTO), "BMP"), PHOTO),
    "tiff": lambda: (file_of(Image.fromarray(PHOTO), "TIFF"), PHOTO),
    "alpha png": lambda: (file_of(RGBA, "PNG"), OVER_WHITE),
    "alpha webp": lambda: (file_of(RGBA, "WEBP", lossless=True, exact=True), OVER_WHITE),
    "palette": lambda: as_pillow_decodes(file_of(Image.fromarray(PHOTO).quantize(256), "PNG")),
    "palette with a hole": lambda: with_hole("PNG"),
    "1 bit": lambda: (file_of(Image.fromarray(GREY > 99), "PNG"), np.dstack([255 * (GREY > 99)] * 3)),
    "16-bit grey": lambda: (file_of(Image.fromarray(GREY_16), "PNG"), GREY_8),
    "gif": animation,
    "gif with a hole": lambda: with_hole("GIF"),
    "jpeg 2000": lambda: (file_of(Image.fromarray(PHOTO), "JPEG2000"), PHOTO),
    "jpeg 2000 without boxes": lambda: (file_of(Image.fromarray(PHOTO), "JPEG2000", no_jp2=True), PHOTO),
    "alpha jpeg 2000": lambda: (file_of(RGBA, "JPEG2000"), OVER_WHITE),
    "16-bit jpeg 2000": lambda: (file_of(Image.fromarray(GREY_16), "JPEG2000"), GREY_8),
    "avif": lambda: as_pillow_decodes(file_of(Image.fromarray(PHOTO), "AVIF")),
    "alpha avif": avif_with_alpha,
    "16-bit tiff": lambda: (file_of(Image.fromarray(GREY_16), "TIFF"), GREY_8),
}


@pytest.mark.parametrize(
    ("depth", "clear", "others"),
    [
        (1, [1], [[0]]),
        (2, [1], [[0], [2], [3]]),
        (4, [9], [[0], [8], [15]]),
        (8, [117], [[116], [118]]),
        (16, [30_000], [[29_999], [30_001]]),
        (8, [9, 8, 7], [[9, 8, 6], [7, 8, 9]]),
        (16, [9_000, 8_000, 7_000], [[8_000] * 3, [9, 8, 7]]),
    ],
)
def test_a_transparent_value_of_a_png_is_white(depth: int, clear: list[int], others: list[list[int]]) -> None:
    pixels = [clear, *others]
    bits = "".join(f"{value:0{depth}b}" for pixel in pixels for value in pixel)
    row = bytes(int(bits[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(bits), 8))
    colours = 0 if len(clear) == 1 else 2
    data = png_of(
        b"IHDR" + struct.pack(">IIBBBBB", len(pixels), 1, depth, colours, 0, 0, 0),
        b"tRNS" + struct.pack(f">{len(clear)}H", *clear), b"IDAT" + zlib.compress(b"\0" + row), b"IEND",
    )  # fmt: skip
    expected = np.array([[255] * len(clear), *others]) * (255 / (2**depth - 1))
    expected[0] = 255
    image = Image.open(io.BytesIO(data))
    for decoded in (decode_any(data), convert_pillow(image), convert_pillow(image)):  # the last one is loaded
        np.testing.assert_allclose(decoded[0], np.broadcast_to(expected, (len(pixels), 3)), atol=1)


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_become_plain_jpegs_of_the_same_image(kind: str) -> None:
    data, expected = KINDS[kind]()
    stored = convert(data, FINE)
    assert stored.how == "encoded" and is_plain_jpeg(stored)
    pillow = pil_decode(jpeg((expected + 0.5).astype(np.uint8), quality=98))
    assert mean_difference(stored, pillow) < 1.3
    # Rounding, of alpha and 16 bits.
    assert mean_difference(convert(data, Target(mode="raw")), expected) < 0.5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_its_tag_removed(kind: str, orientation: int) -> None:
    every: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}
    options = every.get(kind, {})
    data = file_of(Image.fromarray(PHOTO), kind, exif=exif(orientation), **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright.size == ((90, 121) if orientation >= 5 else (121, 90))  # so Pillow applies the tag
    stored = convert(data, FINE)
    if kind == "JPEG" and orientation == 1:
        assert stored.data == data
    else:
        assert is_plain_jpeg(stored)
    pillow = pil_decode(jpeg(np.asarray(upright.convert("RGB")), quality=98))
    # A wrong rotation would give more than 30.
    assert mean_difference(stored, pillow) < (5 if stored.how == "passed" else 2)
    small = convert(data, Target(max_side=40, mode="raw"))
    expected = np.asarray(upright.convert("RGB").resize((small.width, small.height), Image.Resampling.BOX))
    assert max(small.height, small.width) == 40 and mean_difference(small, expected) < 4


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        ((400, 600), Target(short_side=256), (256, 384)),
        ((600, 401), Target(short_side=256), (383, 256)),
        ((400, 600), Target(max_side=300), (200, 300)),
        ((400, 600), Target(short_side=256, max_side=300), (200, 300)),
        ((400, 600), Target(short_side=100, max_side=300), (100, 150)),
        ((100, 150), Target(short_side=256, max_side=999), (100, 150)),
        ((3, 1000), Target(max_side=100), (1, 100)),
    ],
)
def test_sizes(size: tuple[int, int], target: Target, expected: tuple[int, int]) -> None:
    assert target.size(*size) == expected
    stored = store_array(np.zeros((*size, 3), np.uint8), target)
    assert (stored.height, stored.width) == expected == pil_decode(stored.data).shape[:2]


@pytest.mark.parametrize("short_side", [300, 299, 150, 149, 75, 40])
def test_shrinking_by_scaled_decoding_equals_shrinking_the_whole(short_side: int) -> None:
    image = np.asarray(Image.fromarray(photo(2, 300, 401)).resize((1203, 900), Image.Resampling.BICUBIC))
    stored = convert(jpeg(image, quality=95), Target(short_side=short_side, mode="raw"))
    expected = np.asarray(Image.fromarray(image).resize((stored.width, stored.height), Image.Resampling.BOX))
    assert mean_difference(stored, expected) < 2


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "grey"])
@pytest.mark.parametrize("size", [(90, 121), (33, 47), (16, 8), (1, 1), (3, 130)])
def test_raw_holds_what_pillow_decodes(size: tuple[int, int], subsampling: str) -> None:
    image = photo(3, *size)
    is_grey = subsampling == "grey"
    data = jpeg(image[:, :, 0]) if is_grey else jpeg(image, quality=75, subsampling=subsampling)
    stored = convert(data, Target(mode="raw"))
    assert (stored.height, stored.width, stored.mode) == (*size, RAW)
    assert stored.data == pil_decode(data).tobytes()


def test_shrinking_at_full_scale_is_that_of_pillows_pixels() -> None:
    data = jpeg(PHOTO, quality=75)
    stored = convert(data, Target(max_side=100, mode="raw"))  # too large to be decoded at 1/2
    assert stored.data == shrink(pil_decode(data), stored.height, stored.width).tobytes()


def test_reencode_all_keeps_a_jpeg_that_would_not_become_smaller() -> None:
    fine, coarse = (jpeg(PHOTO, quality=quality) for quality in (97, 60))
    target = Target(quality=90, reencode="all")
    stored = convert(fine, target)
    assert stored.how == "encoded" and is_plain_jpeg(stored)
    by_rgb = convert(file_of(Image.fromarray(pil_decode(fine)), "PNG"), target)
    ours, theirs = (np.abs(pil_decode(fine).astype(int) - pil_decode(x.data)) for x in (stored, by_rgb))
    assert ours.mean() <= theirs.mean() < 6
    assert convert(coarse, target) == Stored(coarse, 90, 121, JPG, "passed")


def test_reencode_all_keeps_nothing_that_cannot_be_taken_over() -> None:
    target, coarse = Target(quality=90, reencode="all"), jpeg(PHOTO, quality=60, progressive=True)
    stored = convert(coarse, target)
    assert stored.how == "encoded" and is_plain_jpeg(stored) and len(stored.data) > len(coarse)
    assert convert(with_restart(jpeg(PHOTO, quality=60)), target).how == "mended"


@pytest.mark.parametrize("size", [(90, 121), (89, 60), (45, 61), (30, 121), (31, 77), (7, 3), (1, 1)])
def test_shrinking_is_the_mean_of_the_area(size: tuple[int, int]) -> None:
    read_only = PHOTO.copy()
    read_only.flags.writeable = False
    small = shrink(read_only, *size)
    assert np.abs(small - area_mean(PHOTO, (0, 0, 90, 121), size)).max() <= 0.51
    assert (small is read_only) == (size == (90, 121))


def test_quality_is_pillows() -> None:
    png = file_of(Image.fromarray(PHOTO), "PNG")
    for quality in (60, 90):
        num_bytes = len(convert(png, Target(quality=quality)).data)
        assert num_bytes == pytest.approx(len(jpeg(PHOTO, quality=quality)), rel=0.02)


def test_bad_images_say_why() -> None:
    data = jpeg(PHOTO)
    for broken, word in (
        (b"", "empty"),
        (b"hello, I am a text", "no image of a known format"),
        (data[: len(data) // 2], "truncated"),
        (data[:20], ""),
        (file_of(Image.fromarray(PHOTO), "PNG")[:500], ""),
        (file_of(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "floating-point"),
        (file_of(Image.fromarray(PHOTO), "JPEG2000")[:-1], "broken data stream"),
        (file_of(Image.fromarray(PHOTO), "AVIF")[:-1], "Truncated data"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known format"),
    ):
        with refused(word, by=BadImage):
            convert(broken, Target())
    with pytest.raises(BadImage, match="uint8"):
        store_array(np.zeros((4, 4), np.uint8), Target())


@pytest.mark.parametrize(
    ("kind", "no_jp2"), [("GIF", False), ("AVIF", False), ("JPEG2000", False), ("JPEG2000", True)]
)
def test_sizes_are_checked_before_any_pixel_is_decoded(
    kind: str, no_jp2: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = file_of(Image.fromarray(PHOTO), kind, no_jp2=no_jp2)
    (tmp_path / "x").write_bytes(data)
    assert num_pixels(data) == 90 * 121 and upright_size(str(tmp_path / "x")) == (90, 121)
    monkeypatch.setattr("fastpsl.pipelines.image.image_file.MAX_PIXELS", 90 * 121 - 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("pixels are decoded"))
    for read in (decode_any, num_pixels, lambda data: upright_size(str(tmp_path / "x"))):
        with pytest.raises(BadImage, match="121 x 90 px are more than 10,889 pixels"):
            read(data)


@pytest.mark.parametrize("kind", [kind for kind in image_file.FORMATS if kind != "WEBP"])
def test_the_limit_of_pixels_is_ours_and_not_pillows(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow checks a WebP's size against its own limit, which no WebP can reach."""
    data = file_of(Image.fromarray(PHOTO), kind)
    expected = decode_any(data)
    (tmp_path / "x").write_bytes(data)
    monkeypatch.setattr(image_file, "_BAND_PIXELS", 121)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 121)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(decode_any(data), expected)
        assert num_pixels(data) == 90 * 121 and upright_size(str(tmp_path / "x")) == (90, 121)


def test_a_jpeg_2000_whose_boxes_lie_about_its_size_is_refused() -> None:
    data = bytearray(file_of(Image.fromarray(PHOTO), "JPEG2000"))
    at = data.index(b"\xff\x4f\xff\x51") + 8  # the size of the codestream, not that in the boxes
    data[at : at + 8] = (12_000).to_bytes(4, "big") * 2
    with pytest.raises(BadImage, match="broken data stream"):
        decode_any(bytes(data))


@needs_ffcv("Pillow keeps libjpeg's warnings to itself")
def test_an_array_becomes_no_jpeg_that_readers_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastpsl.pipelines.image.image_file.MAX_PIXELS", 400)
    assert store_array(np.zeros((20, 20, 3), np.uint8), Target()).mode == JPG
    assert store_array(np.zeros((21, 20, 3), np.uint8), Target(mode="raw")).mode == RAW
    with pytest.raises(BadImage, match="20 x 21 px are more than 400 pixels"):
        store_array(np.zeros((21, 20, 3), np.uint8), Target())


def test_a_jpeg_that_libjpeg_warns_about_is_encoded_again() -> None:
    stored = convert(with_restart(jpeg(PHOTO)), Target())
    assert stored.how == "mended" and is_plain_jpeg(stored)
    assert convert(stored.data, Target()).how == "passed"


def test_150_mutated_jpegs() -> None:
    """Each is refused with a reason, or becomes a JPEG that readers decode without a warning."""
    random, refused, changed = Random(3), 0, 0
    for i in range(150):
        data = mutated(jpeg(photo(i % 5, 50 + i % 7, 64), progressive=i % 3 == 0), random)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of broken metadata
            try:
                stored = convert(data, Target(max_side=None if i % 4 else 30))
            except BadImage as error:
                refused += 1
                assert str(error) and "\n" not in str(error)
                continue
        changed += stored.how != "passed"
        again = convert(stored.data, Target())
        assert again.how == "passed" and pil_decode(stored.data).shape == (stored.height, stored.width, 3)
    assert refused > 20 and changed > 20


@pytest.fixture
def no_libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide our C library and ffcv; the rest of the test runs in a thread that has used neither."""
    monkeypatch.setattr(libturbo, "_load", lambda: (None, "installed without it"))
    monkeypatch.setattr(libffcv, "PathFinder", SimpleNamespace(find_spec=lambda *_: None))
    libffcv._load.cache_clear()
    yield
    monkeypatch.undo()
    libffcv._load.cache_clear()


@pytest.mark.usefixtures("no_libraries")
def test_without_c_libraries_pillow_serves(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as fresh:
        fresh.submit(write_by_pillow, tmp_path / "a.beton").result(240)


def write_by_pillow(out: Path) -> None:
    assert libffcv.why_missing() == "ffcv is not installed"
    with refused("ffcv is not installed: pip install"):
        libffcv.library()
    good = jpeg(photo(1, 90, 121))
    assert convert(good, Target()).data == good and encode._codec() is None
    small = convert(good, Target(short_side=45))
    assert pil_decode(small.data).shape == (45, 60, 3), small  # 60.5 rounds to even
    progressive = jpeg(photo(2, 50, 60), progressive=True)
    samples = [Sample("good", good, 0), Sample("cut", good[:-900], 1), Sample("progressive", progressive, 2)]
    with pytest.warns(UserWarning) as caught:
        report = write_beton(samples, out, num_samples=3, max_bad="1")
    assert [str(w.message)[:28] for w in caught] == ["installed without it: Pillow"]
    assert (report.num_passed, report.num_encoded, report.num_bad) == (1, 1, 1), report
    assert list(verify(out)) == []
    data = bytearray(out.read_bytes())
    at = data.find(b"\xff\xc4", data.find(good))  # a Huffman table of nonsense: an error, not a warning
    data[at + 4 : at + 24] = b"\xff" * 20
    out.write_bytes(data)
    assert any("sample 0 (good)" in line for line in verify(out)), list(verify(out))


def test_the_c_library_is_used_where_it_was_built() -> None:
    """So the tests above have not used the slow path."""
    assert (encode._codec() is None) == bool(libturbo.why_missing())


needs_heic = pytest.mark.skipif(is_missing("pi_heif"), reason="needs pi-heif")
# Six squares of 16 px, by libheif: a coded image of 64 x 64 px, with boxes that crop it and turn it (irot 3),
# and EXIF of orientation 6.
COLOURS = [[(255, 0, 0), (0, 255, 0), (0, 0, 255)], [(255, 255, 0), (0, 0, 0), (255, 255, 255)]]
SQUARES = np.kron(np.array(COLOURS, np.uint8), np.ones((16, 16, 1), np.uint8))
HEIC = zlib.decompress(
    base64.b64decode(
        "eNpjYGCQSSupLMhIzUxmAILczDRDEDs3MzGNgYHxRG5qSSIDBChmpOQUQdkMBZnJJQxowCQzJx9siIsDAxMDI4jF+AZCA4EnUAwI"
        "mEzhIipAbJGZmZcG5oFkRYGcVLAyoJqMsmRDBiRBRpAS14pMsHK+gsySXAaoSkb2zIKiAiD7WWZBcj6QLgPqdWZkBglNACuS+8Dw"
        "5++PHwwM/MwJQB0SDow8jP//gxQwg1Qwg5DcLiaHRKCklhMjI5rMAoVG1mmvnizbuYMjw0ABKMQMIhgUk4DK2VwYDxYf6ARaIpyc"
        "n1OUl5xTARTlZWBrAAqJZBYXpEK96wDFGsk5iSCXGUAcz6AAov////8BFAhA+gE0MAQKMisyQRqZOTg4gBRnZlF+CdA9DJKZBbmw"
        "SGFkYGRrZGJmbWkDcqQyi1LToBJ8ySnFyeBoANlRmpuSCIovVw3G9ZIN31tazf8/Mtr/TCH+9aK6yNdRz1/573+1V6fwfZr8D5ns"
        "96Wt3/9LH3HPcfpXnLfz/6r0+Dnz4x50cN5hfviD7260HDAYGdggEeHry6AF5HEwMDIKgcIKFB4Q+wFnTn9X"
    )
)
TURN, EXIF = b"\x09irot\x03", b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
WHY = f"HEIC needs a package; {install('heic')} installs it"


@needs_heic
@pytest.mark.parametrize("exif", range(1, 9))
@pytest.mark.parametrize(("type", "code"), [(1, "B3x"), (3, "H2x"), (4, "I")])
def test_heic_is_turned_by_its_boxes_alone(exif: int, type: int, code: str, tmp_path: Path) -> None:
    assert HEIC.count(TURN) == HEIC.count(EXIF) == 1
    told = HEIC.replace(EXIF, struct.pack(f">HHI{code}", 0x112, type, 1, exif))
    boxes = {b"\x09irot" + bytes([turns]): np.rot90(SQUARES, turns) for turns in range(4)}
    boxes |= {b"\x09imir\x00": SQUARES[::-1], b"\x09imir\x01": SQUARES[:, ::-1]}
    for box, expected in boxes.items():
        data = told.replace(TURN, box)
        (tmp_path / "x").write_bytes(data)
        assert upright_size(str(tmp_path / "x")) == expected.shape[:2] and num_pixels(data) == 48 * 32
        assert np.abs(decode_any(data).astype(int) - expected).max() <= 5, box


@needs_heic
def test_damaged_heic_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (64).to_bytes(4, "big") * 2
    assert HEIC.count(size) == 1
    for broken in (HEIC[:60], HEIC[:-200], HEIC.replace(size, (32).to_bytes(4, "big") * 2)):
        with refused(by=BadImage):
            decode_any(broken)
    monkeypatch.setattr(image_file, "MAX_PIXELS", 48 * 32 - 1)
    with pytest.raises(BadImage, match="32 x 48 px are more than 1,535 pixels"):
        decode_any(HEIC)


@pytest.fixture
def without_heic(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Open a folder of a JPEG and a HEIC image, as where pi-heif is not installed."""
    root = tree(tmp_path / "photos", {"a.jpg": jpeg(photo(0, 40, 50)), "b.heic": HEIC})
    with monkeypatch.context() as patches:
        for module in (image_file, folder_module):
            patches.setattr(module, "is_missing", lambda package: package == "pi_heif")
        with pytest.warns(UserWarning, match=r"1 of 2 images cannot be read, the first is b\.heic: HEIC"):
            Folder(root).close()
        with pytest.raises(BadImage) as caught:
            decode_any(HEIC)
    assert str(caught.value) == WHY
    return root


@pytest.mark.usefixtures("without_heic")
def test_without_the_package_heic_is_broken_and_the_extra_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)  # as if it were not installed
    assert is_missing.__wrapped__("pi_heif")


@needs_heic
def test_an_index_is_made_again_when_the_package_has_come(without_heic: Path) -> None:
    with Folder(without_heic) as data:
        assert data.image_sizes() == (40, 32, 48, 50)


@final
class Peak:
    """A context that measures the growth of this process's memory, in MB."""

    def __enter__(self) -> "Peak":
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self._start_bytes = own_memory("VmHWM")
        return self

    def __exit__(self, *error: object) -> None:
        self.grown_mb = (own_memory("VmHWM") - self._start_bytes) / 1e6


@pytest.fixture
def folder(cache: Path, tmp_path: Path) -> Path:
    """Write two photos and, between them, a file above the size limit."""
    root = tree(tmp_path / "photos", dict.fromkeys(("a.jpg", "c.jpg"), jpeg(photo(0, 40, 50))))
    with open(root / "b.jpg", "wb") as file:
        file.write(b"\xff\xd8\xff\xe0")
        file.truncate(MAX_FILE_BYTES + 1)  # takes no disk
    return root


TOO_LARGE = "268,435,457 bytes; at most 268,435,456 are taken"


def test_a_huge_file_is_refused_unread_by_the_writer(folder: Path, tmp_path: Path) -> None:
    with Peak() as peak:
        report = write_folder(folder, tmp_path / "a.beton", max_bad="1")
    assert report.num_samples == 2 and report.first_bad == f"b.jpg: {TOO_LARGE}"
    assert TOO_LARGE in bad_path(tmp_path / "a.beton").read_text()
    assert peak.grown_mb < 100


@pytest.mark.parametrize("decoder", [decoder for decoder in DECODERS if decoder not in COMPILED])
def test_a_huge_file_is_a_bad_sample_of_its_folder(folder: Path, decoder: str) -> None:
    views = [ViewSpec(RandomResizedCrop(24))]
    with pytest.warns(UserWarning, match=f"1 of 3 images cannot be read, the first is b.jpg: {TOO_LARGE}"):
        data = Folder(folder)
    options = {"batch_size_per_rank": 3, "train": False, "decoder": decoder, "on_bad_sample": "skip"}
    with data, Loader(data, views, **options) as loader:  # type: ignore[arg-type]
        next(loader.epoch(0))  # so that compiling and loading are not measured
        with Peak() as peak:
            (batch,) = loader.epoch(0)
    assert [str(sample.index) for sample in batch.bad] == ["1"] and TOO_LARGE in batch.bad[0].reason
    assert peak.grown_mb < 100


@pytest.mark.usefixtures("cache")
def test_a_frame_header_far_back_is_found_without_reading_the_rest(tmp_path: Path) -> None:
    """Beyond 200 kB, and beyond the searched part, where Pillow finds the size."""
    plain, segment = jpeg(photo(0, 40, 50)), b"\xff\xe3\xff\xff" + bytes(65533)
    heads = {"a.jpg": 3 * segment, "b.jpg": 300 * segment}
    files = {name: plain[:2] + head + plain[2:] for name, head in heads.items()}
    with Folder(tree(tmp_path / "photos", files)) as data:
        rows = data.rows(np.arange(2))
        assert rows.mode.tolist() == [MODE_JPEG, MODE_FILE]
        assert (rows.height == 40).all() and (rows.width == 50).all()


@pytest.mark.parametrize("kind", KINDS)
def test_images_in_bands_are_those_in_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = KINDS[kind]()
    whole = decode_any(data)
    monkeypatch.setattr(image_file, "_BAND_PIXELS", 1000)
    assert whole.shape == (90, 121, 3) and (decode_any(data) == whole).all()


@pytest.mark.parametrize(("mode", "bytes_per_pixel"), [("I;16", 6), ("RGBA", 8), ("1", 5)])
def test_memory_of_an_image_beyond_its_file(mode: str, bytes_per_pixel: int) -> None:
    """The decoded and the RGB image; 16-bit grey once took 20 bytes per pixel."""
    side = 4000
    data = file_of(Image.new(mode, (side, side)), "PNG", compress_level=1)
    convert(file_of(Image.new(mode, (50, 50)), "PNG"), Target(max_side=40))
    with Peak() as peak:
        assert convert(data, Target(max_side=200)).height == 200
    assert peak.grown_mb < side * side * bytes_per_pixel / 1e6 + 30


def test_large_images_wait_for_each_other_and_small_ones_do_not() -> None:
    large = LARGE_PIXELS + 1
    images = MemoryGate(limit_bytes=2 * large * BYTES_PER_PIXEL)
    go, inside, peak, lock = threading.Event(), [0], [0], threading.Lock()
    entered = threading.Semaphore(0)

    def decode_one(num_pixels: int) -> None:
        with images.room_for(num_pixels):
            with lock:
                inside[0] += 1
                peak[0] = max(peak[0], inside[0])
            entered.release()
            assert go.wait(60)
            with lock:
                inside[0] -= 1

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(decode_one, large) for _ in range(5)]
        assert entered.acquire(timeout=60) and entered.acquire(timeout=60)
        with images.room_for(LARGE_PIXELS):  # without waiting
            assert not entered.acquire(timeout=0.1)
        go.set()
        for future in futures:
            future.result(60)
        assert peak[0] == 2
        with images.room_for(100 * large):  # a single image may exceed the limit
            assert not pool.submit(decode_one, 0).result(60)
