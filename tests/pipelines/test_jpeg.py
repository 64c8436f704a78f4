"""Headers of JPEGs, libffcv, and the pixels that each decoder gives for every kind of JPEG."""

import importlib
import io
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastpsl.pipelines.beton.encode import Target, convert
from fastpsl.pipelines.decoders import codes, dali
from fastpsl.pipelines.decoders.dali import DaliDecoder
from fastpsl.pipelines.decoders.decoder import BatchDecoder, Decoder
from fastpsl.pipelines.decoders.libffcv import Handle, decode_into
from fastpsl.pipelines.decoders.read_samples import _jpeg_header, _jpeg_scans
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.image.codec import Codec
from fastpsl.pipelines.image.image_file import convert_pillow, decode_any
from fastpsl.pipelines.image.jpeg import (
    HEADER_BROKEN,
    HEADER_GOOD,
    HEADER_NOT_JPEG,
    HEADER_UNSUPPORTED,
    MAX_SCANS,
    SCANS_GOOD,
    SCANS_NO_TABLES,
    SCANS_STANDARD_CODES,
    SCANS_TOO_MANY,
    jpeg_header,
    jpeg_scans,
)
from fastpsl.pipelines.interface.dataset import BadImage
from tests.pipelines.decoding import Samples, decode, make, samples_are_closed
from tests.pipelines.jpeg_kinds import KINDS, Kind, whole
from tests.pipelines.photos import DECODERS, jpeg, needs_ffcv, photo, pil_decode
from tests.pipelines.test_turbo import check_part
from tests.programs import interpreted

USER_LOOP = """
import os, sys
import numpy as np
from numba import njit
from fastpsl.pipelines.image import jpeg as headers
from fastpsl.pipelines.decoders.libffcv import decode_into, library, pread_into

jpeg_header = njit(headers.jpeg_header)

@njit(cache=True, nogil=True)
def load(fd, num_bytes, data, pixels):
    if pread_into(fd, 0, num_bytes, data) != num_bytes:
        return -2
    status, height, width, components, is_progressive, precision = jpeg_header(data, num_bytes)
    if status or decode_into(data, num_bytes, height, width, pixels, 1, 0):
        return -1
    return int(pixels.astype("int64").sum())

def result(path):
    library()
    num_bytes, fd = os.stat(path).st_size, os.open(path, os.O_RDONLY)
    out = load(fd, num_bytes, np.empty(num_bytes, np.uint8), np.empty(90 * 121 * 3, np.uint8))
    os.close(fd)
    return out, sum(load.stats.cache_hits.values()), sum(load.stats.cache_misses.values())
"""
CACHED = """
import sys, user_loop
print(*user_loop.result(sys.argv[1]), "ffcv" in sys.modules, "torch" in sys.modules)
"""


@needs_ffcv("compiled code calls its library")
def test_compiled_callers_are_cached_across_processes_and_ffcv_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = jpeg(photo(1, 90, 121))
    (tmp_path / "a.jpg").write_bytes(data)
    (tmp_path / "user_loop.py").write_text(USER_LOOP)
    monkeypatch.syspath_prepend(tmp_path)
    first, *counts = importlib.import_module("user_loop").result(tmp_path / "a.jpg")
    monkeypatch.delitem(sys.modules, "user_loop")
    assert counts == [0, 1]  # compiled
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = interpreted(CACHED, tmp_path / "a.jpg", env=paths)
    # Loaded: a dynamic global would make this a miss again.
    assert process.stdout.split() == [str(first), "1", "0", "False", "False"]
    assert first == pytest.approx(pil_decode(data).astype(float).sum(), rel=0.01)


@needs_ffcv("it is compared with its imdecode")
@pytest.mark.parametrize("denominator", [1, 2, 4, 8])
def test_a_handle_decodes_as_imdecode_does(denominator: int) -> None:
    """Bit for bit, for truncated files too, and with one handle for many images."""
    handle = Handle()
    assert handle.address
    for i, (height, width) in enumerate(((90, 121), (1, 1), (17, 300))):
        whole = jpeg(photo(i, height, width), progressive=i == 2)
        for data in (whole, whole[: len(whole) * 2 // 3]):
            results = []
            for address in (0, handle.address):
                out = np.zeros((-(-height // denominator), -(-width // denominator), 3), np.uint8)
                packed = np.frombuffer(data, np.uint8)
                status = decode_into(packed, len(data), height, width, out, denominator, address)
                results.append((status, out.tobytes()))
            assert results[0] == results[1]
        assert any(results[0][1]) or height == 1


def header(data: "bytes | bytearray") -> tuple[int, ...]:
    plain = jpeg_header(bytes(data), len(data))
    assert tuple(_jpeg_header(np.frombuffer(data, np.uint8), len(data))) == plain
    return plain


def test_jpeg_header() -> None:
    image = photo(1, 90, 121)
    good, alpha = (HEADER_GOOD, 90, 121, 3, 0, 8), np.dstack([image, image[:, :, :1]])
    assert header(jpeg(image)) == good == header(jpeg(alpha.view()[:, :, :3]))
    assert header(jpeg(image, progressive=True)) == (HEADER_GOOD, 90, 121, 3, 1, 8)
    assert header(jpeg(image[:, :, 0])) == (HEADER_GOOD, 90, 121, 1, 0, 8)
    data = bytearray(jpeg(image))
    frame = data.find(b"\xff\xc0")
    assert header(data[:frame] + b"\xff\xff" + data[frame:]) == good  # fill bytes
    assert header(data[:frame] + b"\x00" + data[frame:])[0] == HEADER_BROKEN
    markers = {0xC1: HEADER_GOOD, 0xC3: HEADER_UNSUPPORTED, 0xC9: HEADER_UNSUPPORTED, 0xDA: HEADER_BROKEN}
    for marker, status in markers.items():
        data[frame + 1] = marker
        assert header(bytes(data))[0] == status
    data[frame + 1] = 0xC0
    data[frame + 5 : frame + 7] = b"\x00\x00"
    assert header(bytes(data))[0] == HEADER_BROKEN  # height 0
    for foreign in (b"", b"\xff", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", bytes(50)):
        assert header(foreign)[0] == HEADER_NOT_JPEG
    assert header(b"\xff\xd8\xff\xd9")[0] == HEADER_BROKEN


def test_jpeg_header_never_reads_past_the_end() -> None:
    data = np.frombuffer(jpeg(photo(1, 90, 121)), np.uint8)
    frame_end = bytes(data).find(b"\xff\xc0") + 19
    padded = np.concatenate([data, np.full(70000, 0xFF, np.uint8)])
    for num in range(frame_end):
        for buffer in (bytes(padded), padded):
            parse = _jpeg_header if buffer is padded else jpeg_header
            assert parse(buffer, num)[0] != HEADER_GOOD  # nothing beyond `num` is read
    assert jpeg_header(bytes(padded), frame_end)[0] == HEADER_GOOD


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
    samplings = [(luma, colour, (1, 1)) for luma in lumas for colour in (luma, (1, 1))]
    kinds = [Kind(sampling, is_interleaved=False) for sampling in samplings]
    for kind in (*KINDS.values(), *kinds) * num:
        height, width = int(random.integers(1, 301)), int(random.integers(200, 501))
        data = kind.encode(image[:height, :width])
        for denominator in (1, 2, 4, 8):
            expected = whole(data, height, width, denominator)
            rows, columns = expected.shape[:2]
            tall, wide = int(random.integers(1, rows + 1)), int(random.integers(1, columns // 4))
            top, left = int(random.integers(rows - tall + 1)), int(random.integers(columns - wide + 1))
            check_part(data, (height, width), denominator, (top, left, tall, wide), expected)


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


DQT, DHT, SCAN, FILLED = 0xDB, 0xC4, b"\xff\xda", b"\xff\xff\xd3\xff\xff\xda"


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
        # A restart and fill bytes.
        (progressive.replace(SCAN, FILLED), SCANS_GOOD),
        (without(progressive, DHT).replace(SCAN, FILLED), SCANS_NO_TABLES),
        (many_scans(8).replace(SCAN, FILLED), SCANS_TOO_MANY),
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
