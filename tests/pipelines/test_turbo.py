"""The C library's parts of images are those of Pillow's whole decode bit for bit, and its means are exact."""

import ctypes
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastpsl.kernels.isotropic import largest_side_px, margin_px
from fastpsl.kernels.isotropic_loops import isotropic_resize
from fastpsl.pipelines.beton.encode import Target, convert
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.image.codec import Codec, shrink
from fastpsl.pipelines.image.coefficients import PADDING
from fastpsl.pipelines.image.libturbo import Handle, library
from tests.pipelines.photos import area_mean, jpeg, photo, pil_decode

pytestmark = pytest.mark.skipif(bool(libturbo.why_missing()), reason="the C library was not built")

SIZES = [(61, 47), (128, 128), (200, 333), (17, 301), (8, 8), (1, 1), (3, 400)]
# How a JPEG may be stored: Pillow's subsampling 0 is 4:4:4, 1 is 4:2:2, 2 is 4:2:0. Quality 100 has the
# longest codes. Restart markers and progressive scans take libjpeg's own Huffman decoder.
FORMS: dict[str, dict[str, object]] = {
    "4:4:4": {"subsampling": 0}, "4:2:2": {"subsampling": 1}, "4:2:0": {"subsampling": 2},
    "optimised tables": {"optimize": True, "quality": 75}, "quality 100": {"quality": 100, "subsampling": 0},
    "quality 5": {"quality": 5}, "restart markers": {"restart_marker_blocks": 3},
    "progressive": {"progressive": True},
}  # fmt: skip


def decode(
    data: bytes,
    height: int,
    width: int,
    region: tuple[int, int, int, int],
    denominator: int = 1,
    is_packed: bool = False,
) -> tuple[int, np.ndarray, list[int]]:
    """Return the status, the part that was decoded, and where it lies."""
    pixels, placed = np.empty(height * width * 3, np.uint8), np.zeros(4, np.int64)
    handle, wanted = Handle(), np.array(region, np.int64)
    status = library().fastpsl_turbo_decode(
        handle.address, data + bytes(PADDING), len(data), height, width, denominator, True, is_packed,
        wanted.ctypes.data, pixels.ctypes.data, placed.ctypes.data,
    )  # fmt: skip
    rows, columns = placed[2:].tolist()
    return status, pixels[: rows * columns * 3].reshape(rows, columns, 3), placed.tolist()


def check_part(
    data: bytes, size: tuple[int, int], denominator: int, region: tuple[int, int, int, int],
    expected: np.ndarray, is_packed: bool = False,
) -> None:  # fmt: skip
    """Check that a region is decoded, with others around it, as the same part of the whole."""
    status, part, placed = decode(data, *size, region, denominator, is_packed)
    top, left, tall, wide = region
    y, x = top - placed[0], left - placed[1]
    assert status == 0 and y >= 0 and x >= 0
    part, expected = part[y : y + tall, x : x + wide], expected[top : top + tall, left : left + wide]
    np.testing.assert_array_equal(part, expected)


def resize(image: np.ndarray, box: tuple[float, float, float, float], out: np.ndarray) -> int:
    sides = out.shape[:2]
    status: int = library().fastpsl_area_resize(
        image.ctypes.data, image.strides[0], *box, out.ctypes.data, *sides
    )
    return status


def check_regions(data: bytes, height: int, width: int) -> None:
    expected, random = pil_decode(data), np.random.default_rng(height)
    for _ in range(8):
        rows, columns = int(random.integers(1, height + 1)), int(random.integers(1, width + 1))
        top, left = int(random.integers(height - rows + 1)), int(random.integers(width - columns + 1))
        check_part(data, (height, width), 1, (top, left, rows, columns), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_region_is_that_of_the_whole_decode(form: str, height: int, width: int) -> None:
    check_regions(jpeg(photo(height, height, width), **FORMS[form]), height, width)


def test_noise_and_grey_are_decoded() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    check_regions(jpeg(noise, quality=100, subsampling=0), 90, 70)
    check_regions(jpeg(photo(0, 90, 70)[..., 0]), 90, 70)


@pytest.mark.parametrize("denominator", [2, 4, 8])
def test_a_scaled_region_is_that_of_the_scaled_decode(denominator: int) -> None:
    data = jpeg(photo(1, 203, 333))
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (333 // denominator, 203 // denominator))
    expected = np.asarray(image)
    rows, columns, _ = expected.shape
    assert (rows, columns) == (-(-203 // denominator), -(-333 // denominator))
    for region in [(0, 0, rows, columns), (3, 5, rows - 6, 9), (rows - 4, columns - 7, 3, 2)]:
        check_part(data, (203, 333), denominator, region, expected)


def test_damage_is_refused_as_far_as_it_is_read() -> None:
    data = jpeg(photo(2, 120, 140))
    whole, first_rows = (0, 0, 120, 140), (0, 0, 8, 140)
    for region in (whole, first_rows):
        assert decode(data, 120, 140, region)[0] == 0
        assert decode(data[:-2], 120, 140, region)[0] == 1  # no end-of-image marker
        assert decode(data[: len(data) // 2], 120, 140, region)[0] == 1
        assert decode(data, 120, 139, region[:3] + (139,))[0] == 1  # another size
        assert decode(b"\xff\xd8 no JPEG", 120, 140, region)[0] == 1
    middle = len(data) * 3 // 4
    cut = data[:middle] + data[-2:]  # ends too early: the rows that it has are read
    assert decode(cut, 120, 140, whole)[0] == 1 and decode(cut, 120, 140, first_rows)[0] == 0
    more = data[:-2] + bytes(20) + data[-2:]
    assert decode(more, 120, 140, whole)[0] == 1


def test_damage_between_restart_markers_is_refused() -> None:
    data, whole = jpeg(photo(2, 120, 140), restart_marker_rows=1), (0, 0, 120, 140)
    second = data.index(b"\xff\xd1")
    assert decode(data, 120, 140, whole)[0] == 0
    for before, between, after in [
        (second, b"\xff\xd2", second + 2),  # another number
        (second, b"", second + 2),  # no marker
        (second, b"\x12", second),  # a byte too many
        (second - 3, b"", second),  # three too few
        (second, b"\xff\xd1\xff\xd2", second + 2),  # a part without bytes
    ]:
        assert decode(data[:before] + between + data[after:], 120, 140, whole)[0] == 1, between
    # Neither fill bytes nor a marker after the last part are damage.
    for good in (data[:second] + b"\xff\xff" + data[second:], data[:-2] + b"\xff\xd7" + data[-2:]):
        np.testing.assert_array_equal(decode(good, 120, 140, whole)[1], pil_decode(data))


def test_fill_bytes_in_the_midst_of_data_give_what_libjpeg_gives() -> None:
    data = jpeg(photo(2, 120, 140), quality=100)
    at = data.index(b"\xff\x00", len(data) // 2)
    filled = data[:at] + b"\xff\xff" + data[at:]
    status, pixels, _ = decode(filled, 120, 140, (0, 0, 120, 140))
    if not status:
        np.testing.assert_array_equal(pixels, pil_decode(filled))
    assert (status != 0) == (Codec().pack(filled) is None)


@pytest.mark.parametrize("size", [1, 2, 5, 6, 97])
def test_resizes_are_exact_means(size: int) -> None:
    random = np.random.default_rng(size)
    image = random.integers(0, 256, (201, 333, 3), np.uint8)
    white = np.full_like(image, 255)
    boxes: list[tuple[float, float, float, float]]
    boxes = [(0, 0, 201, 333), (200, 332, 1, 1), (7.25, 11.5, 60.5, 97), (0, 0, 201, 1), (3, 5, size, size)]
    boxes[-1:-1] = [(7.25, 11.5, 3.5, 90), (7.25, 11.5, 90.5, 3)]  # one side grows, the other one shrinks
    for box in boxes:
        top, left, height, width = (float(value) for value in box)
        for source in (image, white):
            out = np.full((size, size, 3), 7, np.uint8)
            assert resize(source, (top, left, height, width), out) == 0
            assert np.abs(out - area_mean(source, box, size)).max() < 0.52, box
        if top == 3:
            np.testing.assert_array_equal(out, 255)
            resize(image, (top, left, height, width), out)
            np.testing.assert_array_equal(out, image[3 : 3 + size, 5 : 5 + size])


@pytest.mark.parametrize("is_diagonal", [False, True])
@pytest.mark.parametrize("size", [1, 2, 7, 60])
def test_isotropic_windows_are_those_of_the_compiled_loops(size: int, is_diagonal: bool) -> None:
    height, width = 151, 168
    noise = np.random.default_rng(size).integers(0, 256, (height, width, 3), np.uint8)
    for image in (noise, photo(4, height, width), np.full_like(noise, 255)):
        for side in (1, 20, 83):
            side = min(side, int(largest_side_px(np.array(height), size)))
            if side < 1:
                continue
            margin = int(margin_px(side, size))
            for top, left in ((margin, margin), (height - side - margin, width - side - margin)):
                out, expected = (np.full((size, size, 3), fill, np.uint8) for fill in (7, 9))
                status = library().fastpsl_isotropic_resize(
                    image.ctypes.data, height, width, top, left, side, is_diagonal, out.ctypes.data, size
                )
                isotropic_resize(image.reshape(-1), height, width, top, left, side, is_diagonal, expected)
                assert status == 0
                # The sums' order differs, which may change a rounding.
                np.testing.assert_allclose(out, expected, rtol=0, atol=1)
                assert (out != expected).mean() < 0.01


def test_the_codec_is_pillows() -> None:
    codec = Codec()
    for height, width in ((90, 121), (1, 1), (7, 300)):
        image = photo(3, height, width)
        data = jpeg(image, subsampling=0)
        pixels, is_good = codec.decode(data, height, width)
        assert is_good and codec.decodes_cleanly(data, height, width)
        np.testing.assert_array_equal(pixels, pil_decode(data))
        assert codec.decode(data, height, width, 4)[0].shape == (-(-height // 4), -(-width // 4), 3)
        assert codec.encode(image, 83) == jpeg(image, quality=83)
    for damaged in (data[: len(data) // 2], data[:-2], data[:-2] + bytes(20) + data[-2:]):
        assert not codec.decode(damaged, height, width)[1]
        assert not codec.decodes_cleanly(damaged, height, width)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)  # larger than its pixels
    assert codec.encode(noise, 100) == jpeg(noise, quality=100, subsampling=2)
    assert codec.encode(np.zeros((1, 65_501, 3), np.uint8), 90) is None


SHRUNK_SIZES = [
    ((61, 47), (61, 47)), ((128, 144), (64, 72)), ((200, 333), (77, 129)), ((201, 333), (199, 331)),
    ((17, 301), (7, 123)), ((64, 48), (5, 4)), ((15, 13), (1, 1)), ((2, 40), (2, 20)),
    ((512, 512), (255, 255)),
]  # fmt: skip


def stored_planes(data: bytes, denominator: int = 1) -> np.ndarray:
    """Return what libjpeg decodes before it converts colours, uint8 [h, w, 3].

    At 1/2, the colours of 4:2:0 are as they are stored.
    """
    with Image.open(io.BytesIO(data)) as image:
        image.draft("YCbCr", (max(1, image.width // denominator), max(1, image.height // denominator)))
        return np.asarray(image)


def means(plane: np.ndarray, extent: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """Return the means of the first `extent` rows and columns, which may go a little beyond the edge."""

    def shares(num: int, length: float, parts: int) -> np.ndarray:
        edges, pixels = np.arange(parts + 1) * length / parts, np.arange(num)
        # As wide as a sample at least; a mean that would begin or end outside sees less.
        centres, half = (edges[1:] + edges[:-1]) / 2, max(1, length / parts) / 2
        low, high = np.maximum(centres - half, 0)[:, None], np.minimum(centres + half, length)[:, None]
        return np.maximum(np.minimum(high, pixels + 1) - np.maximum(low, pixels), 0) / (high - low)

    padded = np.pad(plane.astype(float), 40, "edge")[40:, 40:]
    return shares(len(padded), extent[0], size[0]) @ padded @ shares(len(padded[0]), extent[1], size[1]).T


def test_the_loops_of_all_processors_resize_to_the_same_bytes() -> None:
    """Pixels are mixed in pairs, or with AVX-512 in groups of up to ten, the last of which is cut."""
    kind = ctypes.c_int.in_dll(library(), "fastpsl_unpack_kind")
    random, image = np.random.default_rng(0), photo(3, 180, 260)
    for number in range(300):
        height, width = random.integers(1, (40, 70)[number % 2], 2).tolist()
        box = [min(side, max(1.0, random.uniform(0.2, 7) * of)) for side, of in ((180, height), (260, width))]
        start = [random.uniform(0, side - length) for side, length in zip((180, 260), box, strict=True)]
        results = []
        for kind.value in range(library().fastpsl_unpack_best() + 1):
            out = np.empty((height, width, 3), np.uint8)
            assert resize(image, (*start, *box), out) == 0
            results.append(out)
        kind.value = -1
        assert all((other == results[0]).all() for other in results[1:]), (height, width, start, box)


@pytest.mark.parametrize(("size", "small"), SHRUNK_SIZES)
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_luma_is_the_mean_of_the_area(
    size: tuple[int, int], small: tuple[int, int], subsampling: int
) -> None:
    data = jpeg(photo(1, *size), quality=90, subsampling=subsampling)
    shrunk = Codec().shrink_jpeg(data, *small, quality=100)
    assert shrunk is not None
    ours, expected = stored_planes(shrunk)[..., 0], means(stored_planes(data)[..., 0], size, small)
    assert ours.shape == small
    assert np.abs(ours - expected).max() < 3 and np.abs(ours - expected).mean() < 0.5


@pytest.mark.parametrize(("size", "small"), SHRUNK_SIZES)
@pytest.mark.parametrize("subsampling", [0, 2])
def test_colours_are_the_means_of_two_by_two_pixels(
    size: tuple[int, int], small: tuple[int, int], subsampling: int
) -> None:
    data = jpeg(photo(2, *size), quality=90, subsampling=subsampling)
    shrunk = Codec().shrink_jpeg(data, *small, quality=100)
    assert shrunk is not None
    half = -(-small[0] // 2), -(-small[1] // 2)
    extent = size[0] * 2 * half[0] / small[0], size[1] * 2 * half[1] / small[1]
    source = stored_planes(data)
    if subsampling == 2:
        source, extent = stored_planes(data, 2), (extent[0] / 2, extent[1] / 2)
    ours = stored_planes(shrunk, 2)
    assert ours.shape[:2] == half
    for channel in (1, 2):
        difference = np.abs(ours[..., channel] - means(source[..., channel], extent, half))
        assert difference.max() < 3 and difference.mean() < 0.6


@pytest.mark.parametrize("denominator", [2, 4, 8])
def test_a_scaled_decode_is_shrunk_as_well(denominator: int) -> None:
    data = jpeg(photo(3, 417, 501), quality=90)
    shrunk = Codec().shrink_jpeg(data, 20, 24, quality=100, denominator=denominator)
    assert shrunk is not None
    source = stored_planes(data, denominator)[..., 0]
    expected = means(source, (417 / denominator, 501 / denominator), (20, 24))
    assert np.abs(stored_planes(shrunk)[..., 0] - expected).max() < 3


@pytest.mark.parametrize("form", [{"progressive": True}, {"restart_marker_blocks": 3}, {"subsampling": 1}])
def test_it_is_near_to_what_goes_by_rgb(form: dict[str, object]) -> None:
    data, codec = jpeg(photo(4, 150, 170), quality=95, **form), Codec()
    shrunk = codec.shrink_jpeg(data, 100, 113, quality=95)
    assert shrunk is not None
    difference = pil_decode(shrunk).astype(int) - shrink(pil_decode(data), 100, 113)
    assert np.abs(difference).mean() < 3 and abs(difference.mean()) < 0.2


def test_what_it_does_not_take_goes_by_rgb() -> None:
    image, codec = photo(5, 90, 120), Codec()
    rgb = jpeg(image, quality=95, keep_rgb=True)
    assert codec.shrink_jpeg(rgb, 45, 60, quality=90) is None
    stored = convert(rgb, Target(max_side=60))
    assert stored.data == codec.encode(shrink(pil_decode(rgb), 45, 60), 90)
    tall = jpeg(photo(6, 990, 30), quality=95)
    assert codec.shrink_jpeg(tall, 30, 1, quality=90) is None  # 33 rows a row
    stored = convert(tall, Target(max_side=30))
    assert pil_decode(stored.data).shape == (30, 1, 3)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.98])
def test_damage_is_refused_and_the_next_image_is_good(share: float) -> None:
    data, codec = jpeg(photo(7, 90, 120), quality=90), Codec()
    good = codec.shrink_jpeg(data, 45, 60, quality=90)
    assert good is not None
    assert codec.shrink_jpeg(data[: int(share * len(data))], 45, 60, quality=90) is None
    assert codec.shrink_jpeg(data[:4] + b"x" * 50, 45, 60, quality=90) is None
    assert codec.shrink_jpeg(data, 45, 60, quality=90) == good
    assert pil_decode(codec.encode(pil_decode(data), 90) or b"").shape == (90, 120, 3)


def test_a_source_folder_without_the_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise FileNotFoundError(name)

    monkeypatch.setattr(libturbo, "open_library", missing)
    monkeypatch.setattr(libturbo, "_ROOT", tmp_path)
    assert "installed without" in libturbo._load.__wrapped__()[1]
    (tmp_path / "setup.py").touch()
    assert f"the source folder {tmp_path}, " in libturbo._load.__wrapped__()[1]
