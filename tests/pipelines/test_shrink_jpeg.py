"""JPEGs that are shrunk as they are stored: luma and colours are the means over areas."""

import io

import numpy as np
import pytest
from PIL import Image

from fastpsl.pipelines.beton.encode import Target, convert
from fastpsl.pipelines.image import libturbo
from fastpsl.pipelines.image.codec import Codec, shrink
from tests.pipelines.photos import jpeg, photo, pil_decode

pytestmark = pytest.mark.skipif(bool(libturbo.why_missing()), reason="the C library was not built")

SIZES = [
    ((61, 47), (61, 47)),
    ((128, 144), (64, 72)),
    ((200, 333), (77, 129)),
    ((201, 333), (199, 331)),
    ((17, 301), (7, 123)),
    ((64, 48), (5, 4)),
    ((15, 13), (1, 1)),
    ((2, 40), (2, 20)),
    ((512, 512), (255, 255)),
]


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


@pytest.mark.parametrize(("size", "small"), SIZES)
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


@pytest.mark.parametrize(("size", "small"), SIZES)
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
