"""Each decoder gives the pixels of libjpeg's decode for every kind of JPEG, whatever it decoded before."""

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastpsl.pipelines.beton.encode import Target, convert
from fastpsl.pipelines.data.dataset import BadImage
from fastpsl.pipelines.decoders import codes, dali
from fastpsl.pipelines.decoders.dali import DaliDecoder
from fastpsl.pipelines.decoders.decoder import BatchDecoder, Decoder
from fastpsl.pipelines.decoders.read_samples import _jpeg_scans
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.image.codec import Codec
from fastpsl.pipelines.image.image_file import convert_pillow, decode_any
from fastpsl.pipelines.image.jpeg import (
    MAX_SCANS,
    SCANS_GOOD,
    SCANS_NO_TABLES,
    SCANS_STANDARD_CODES,
    SCANS_TOO_MANY,
    jpeg_scans,
)
from tests.pipelines.decoding import Samples, decode, make, samples_are_closed
from tests.pipelines.jpeg_kinds import KINDS, Kind, whole
from tests.pipelines.photos import DECODERS, jpeg, photo, pil_decode
from tests.pipelines.test_turbo import decode as decode_region

assert samples_are_closed  # a fixture
needs_turbo = pytest.mark.skipif(bool(libturbo.why_missing()), reason="the C library was not built")
# The nightly test has all sides; these are around the blocks of 8 px and their doubles and quadruples.
FEW_SIDES = (1, 7, 8, 9, 17, 31, 33, 64)
ALL_SIDES = pytest.param(range(1, 65), marks=pytest.mark.nightly)


@contextmanager
def making(name: str) -> Iterator[Decoder | BatchDecoder]:
    decoder = make(name)
    yield decoder
    if isinstance(decoder, BatchDecoder):
        decoder.close()


@needs_turbo
@pytest.mark.parametrize("sides", [FEW_SIDES, ALL_SIDES], ids=["few", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_those_of_the_whole(kind: str, sides: "tuple[int, ...] | range") -> None:
    """Any part, at 1/1 to 1/8, is bit for bit libjpeg's, and that is Pillow's."""
    image, random = photo(3, 64, 64), np.random.default_rng(0)
    for height in sides:
        for width in sides:
            data = KINDS[kind].encode(image[:height, :width])
            for denominator in (1, 2, 4, 8):
                expected = whole(data, height, width, denominator)
                if denominator == 1:
                    np.testing.assert_array_equal(pil_decode(data), expected)
                rows, columns = expected.shape[:2]
                top, left = int(random.integers(rows)), int(random.integers(columns))
                parts = [(0, 0, rows, columns), (top, left, 1, 1), (top, left, rows - top, columns - left)]
                for region in parts[: None if denominator == 1 else 2]:
                    check_part(data, (height, width), denominator, region, expected)


@needs_turbo
@pytest.mark.parametrize("num", [1, pytest.param(50, marks=pytest.mark.nightly)])
def test_parts_of_wide_images_are_those_of_the_whole(num: int) -> None:
    """Columns beside them are not decoded, at 1/2 to 1/8 either."""
    image, random = photo(3, 300, 500), np.random.default_rng(num)
    lumas = [(across, down) for across in range(1, 5) for down in range(1, 5)]
    kinds = [
        Kind((luma, colour, (1, 1)), is_interleaved=False) for luma in lumas for colour in (luma, (1, 1))
    ]
    for kind in (*KINDS.values(), *kinds) * num:
        height, width = int(random.integers(1, 301)), int(random.integers(200, 501))
        data = kind.encode(image[:height, :width])
        for denominator in (1, 2, 4, 8):
            expected = whole(data, height, width, denominator)
            rows, columns = expected.shape[:2]
            tall, wide = int(random.integers(1, rows + 1)), int(random.integers(1, columns // 4))
            top, left = int(random.integers(rows - tall + 1)), int(random.integers(columns - wide + 1))
            check_part(data, (height, width), denominator, (top, left, tall, wide), expected)


def check_part(
    data: bytes,
    size: tuple[int, int],
    denominator: int,
    region: tuple[int, int, int, int],
    expected: np.ndarray,
) -> None:
    status, part, placed = decode_region(data, *size, region, denominator)
    assert status == 0
    top, left, tall, wide = region
    y, x = top - placed[0], left - placed[1]
    np.testing.assert_array_equal(
        part[y : y + tall, x : x + wide], expected[top : top + tall, left : left + wide]
    )


@pytest.mark.parametrize("sides", [FEW_SIDES, ALL_SIDES], ids=["few", "all"])
@pytest.mark.parametrize("name", DECODERS)
def test_decoders_agree_on_each_kind(name: str, sides: "tuple[int, ...] | range", tmp_path: Path) -> None:
    with making(name) as decoder:
        check_kinds(decoder, sides, tmp_path)


@pytest.mark.gpu
def test_a_gpus_engines_agree_on_each_kind(tmp_path: Path) -> None:
    device = torch.device("cuda")
    if why := dali.why_missing(device):
        pytest.skip(why)
    with closing(DaliDecoder("beton", 600, 2, device)) as decoder:
        check_kinds(decoder, FEW_SIDES, tmp_path, is_gpu=True)


def check_kinds(
    decoder: Decoder | BatchDecoder, sides: "tuple[int, ...] | range", path: Path, is_gpu: bool = False
) -> None:
    image = photo(3, 64, 64)
    sizes = [*zip(sides, sides, strict=True), *zip(sides, sides[::-1], strict=True)]
    for kind, form in KINDS.items():
        jpegs = [form.encode(image[:height, :width]) for height, width in sizes]
        table = [(data, *size, 0) for data, size in zip(jpegs, sizes, strict=True)]
        rows = Samples(path / "samples", table).rows
        for i, (height, width) in enumerate(sizes):
            side = min(height, width)  # the square at the lower right
            box = np.array([[height - side, width - side, side, side]], np.int32)
            status, (out,) = decode(decoder, rows.part(slice(i, i + 1)), [box], [side])
            if form.is_arithmetic:  # encoded anew at writing
                assert status[0] == codes.NOT_JPEG
                continue
            assert status[0] == codes.GOOD
            expected = whole(jpegs[i], height, width)[-side:, -side:]
            levels = np.abs(out[0].astype(int) - expected)
            assert levels.max() <= most_levels(decoder.name, form, is_gpu), (kind, height, width)


def most_levels(name: str, form: Kind, is_gpu: bool) -> int:
    """Return how far a decoder's values may be from those of the accurate DCT with smooth colours."""
    if is_gpu:  # its engines enlarge colours by repeating them
        return 8 if len(form.sampling) == 1 or len({*form.sampling}) == 1 else 80
    if name == "ffcv":  # the fast DCT, which shows most where coefficients are rounded least
        return 24 if form.quality == 100 else 8
    return 1 if name == "dali" else 0  # its resize rounds


def without(data: bytes, marker: int, nth: "int | None" = None) -> bytes:
    """Return a JPEG without its segments of a marker, or without the nth of them alone."""
    out, at, num = data[:2], 2, 0
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        is_meant = data[at + 1] == marker
        if not is_meant or (nth is not None and num != nth):
            out += data[at:end]
        num += is_meant
        at = end
    return out + data[at:]


DQT, DHT = 0xDB, 0xC4


@pytest.mark.parametrize("name", DECODERS)
def test_tables_of_another_image_are_never_used(name: str, tmp_path: Path) -> None:
    """Without Huffman tables the standard ones hold; without quantisation tables there is no image."""
    image = photo(5, 40, 40)
    standard = jpeg(image, quality=90)
    jpegs = [
        jpeg(photo(6, 40, 40), quality=30, optimize=True),  # leaves other tables behind
        without(standard, DHT),
        jpeg(photo(6, 40, 40), quality=30, optimize=True),
        without(standard, DQT),
        without(standard, DQT, 1),  # of the colours
        without(jpeg(image, progressive=True), DHT),
        standard,
    ]
    samples = Samples(tmp_path / "samples", [(data, 40, 40, 0) for data in jpegs])
    box = np.tile(np.array([0, 0, 40, 40], np.int32), (len(jpegs), 1))
    with making(name) as decoder:
        status, (out,) = decode(decoder, samples.rows, [box], [40])
    assert (status != codes.GOOD).tolist() == [False, False, False, True, True, True, False]
    np.testing.assert_array_equal(out[1], out[6])


@needs_turbo
def test_writing_takes_no_tables_of_another_image() -> None:
    image, codec = photo(5, 40, 40), Codec()
    standard = jpeg(image, quality=90)
    codec.decode(jpeg(photo(6, 40, 40), quality=30, optimize=True), 40, 40)
    assert codec.shrink_jpeg(without(standard, DQT), 20, 20, 90) is None
    assert codec.shrink_jpeg(without(standard, DHT), 20, 20, 90) == codec.shrink_jpeg(standard, 20, 20, 90)
    assert not codec.decodes_cleanly(without(standard, DQT), 40, 40)
    np.testing.assert_array_equal(codec.decode(without(standard, DHT), 40, 40)[0], pil_decode(standard))
    # FFCV's own reader would take the tables of the image before, so such a file is not stored as it is.
    stored = convert(without(standard, DHT), Target())
    assert stored.how == "encoded" and jpeg_scans(stored.data) == SCANS_GOOD
    for broken in (without(standard, DQT), without(standard, DQT, 1)):
        with pytest.raises(BadImage, match="without tables of its own"):
            convert(broken, Target())


def many_scans(num_planes: int) -> bytes:
    return Kind(((1, 1),), num_planes=num_planes).encode(photo(0, 16, 16))


def test_scans_are_counted_and_tables_found() -> None:
    image = photo(5, 40, 40)
    standard, progressive = jpeg(image), jpeg(image, progressive=True)
    for data, expected in [
        (standard, SCANS_GOOD),
        (progressive, SCANS_GOOD),
        *[(kind.encode(image), SCANS_GOOD) for kind in KINDS.values()],
        (without(standard, DHT), SCANS_STANDARD_CODES),
        (without(KINDS["4:2:0 a scan a component"].encode(image), DHT, 0), SCANS_STANDARD_CODES),
        *[(without(standard, DHT, nth), SCANS_STANDARD_CODES) for nth in range(4)],
        (without(progressive, DHT), SCANS_NO_TABLES),
        *[(without(standard, DQT, nth), SCANS_NO_TABLES) for nth in range(2)],
        (without(KINDS["4:4:4 progressive"].encode(image), DQT, 1), SCANS_NO_TABLES),
        (many_scans(7), SCANS_GOOD),  # 448 scans
        (many_scans(8), SCANS_TOO_MANY),
        *[
            (data.replace(b"\xff\xda", b"\xff\xff\xd3\xff\xff\xda"), expected)  # a restart and fill bytes
            for data, expected in [
                (progressive, SCANS_GOOD),
                (without(progressive, DHT), SCANS_NO_TABLES),
                (many_scans(8), SCANS_TOO_MANY),
            ]
        ],
    ]:
        assert jpeg_scans(data) == expected
        buffer = np.frombuffer(data, np.uint8)
        assert _jpeg_scans(buffer, len(data)) == expected
        for stop in range(0, len(data), 97):  # no byte beyond the end is read
            assert _jpeg_scans(buffer[:stop].copy(), stop) == jpeg_scans(data[:stop])


@pytest.mark.parametrize("name", DECODERS)
def test_a_jpeg_of_many_scans_is_refused(name: str, tmp_path: Path) -> None:
    """512 scans without a fault."""
    data = many_scans(8)
    samples = Samples(tmp_path / "samples", [(data, 16, 16, 0)])
    with making(name) as decoder:
        status, _ = decode(decoder, samples.rows, [np.array([[0, 0, 16, 16]], np.int32)], [16])
    assert status[0] == codes.CORRUPT
    for read in (decode_any, lambda data: convert_pillow(Image.open(io.BytesIO(data)))):
        with pytest.raises(BadImage, match=f"more than {MAX_SCANS} scans"):
            read(data)
