"""Made-up photos: distinct, reproducible by seed, with the sizes and the JPEG format of photos."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.photos import BYTES_PER_PIXEL, SIDES, Fields, photo, write_photos
from bench.sizes import SIZES, crop_px
from fastpsl.pipelines.beton.reader import Beton

NUM = 24


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    fields = Fields(3)
    return [photo(fields, index) for index in range(NUM)]


def test_each_is_another_and_the_same_again(jpegs: list[bytes], tmp_path: Path) -> None:
    assert len(set(jpegs)) == NUM
    write_photos(tmp_path / "photos.beton", 5, seed=3, num_workers=2)
    with Beton(tmp_path / "photos.beton") as data:
        assert [data.read(index) for index in range(5)] == jpegs[:5]
        assert data.labels().tolist() == [0, 1, 2, 3, 4]
    assert photo(Fields(4), 0) != jpegs[0]


def test_they_are_what_cameras_images_become(jpegs: list[bytes]) -> None:
    for jpeg in jpegs:
        image = Image.open(io.BytesIO(jpeg))
        assert (image.height, image.width) in {sides[:2] for sides in SIDES}
        assert not image.info.get("progressive") and image.mode == "RGB"
        # Components' horizontal and vertical sampling factors: 4:2:0.
        assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]  # type: ignore[attr-defined]


def test_bytes_are_a_photos(jpegs: list[bytes]) -> None:
    pixels = [np.prod(Image.open(io.BytesIO(jpeg)).size) for jpeg in jpegs]
    each = np.array([len(jpeg) for jpeg in jpegs]) / pixels
    assert each.mean() == pytest.approx(BYTES_PER_PIXEL, rel=0.15)
    assert 0.15 < np.log(each).std() < 0.5
    mean_pixels = sum(height * width * share for height, width, share in SIDES)
    assert sum(share for *_, share in SIDES) == pytest.approx(1)
    assert mean_pixels == pytest.approx(0.165e6, rel=0.02)


@pytest.mark.parametrize("size", ["64", "500"])
def test_images_of_sizes_are_as_heavy_as_real_ones(size: str) -> None:
    form, fields = SIZES[size], Fields(1)
    densities = []
    for index in range(8):
        jpeg = photo(fields, index, form.bytes_per_pixel, form.sides, form.quality)
        width, height = Image.open(io.BytesIO(jpeg)).size
        assert (height, width) in {sides[:2] for sides in form.sides}
        target = np.random.default_rng((1, 10, index))
        target.choice(len(form.sides), p=[share for *_, share in form.sides])
        factor = np.exp(0.35 * target.standard_normal() - 0.35**2 / 2)
        densities.append(len(jpeg) / (height * width) / factor)
    assert np.median(densities) == pytest.approx(form.bytes_per_pixel, rel=0.05)


def test_shapes_are_those_of_the_named_sets() -> None:
    means = {size: [sum(s[a] * s[2] for s in form.sides) for a in (0, 1)] for size, form in SIZES.items()}
    assert means["originals"] == pytest.approx([387, 469], rel=0.02) and means["224"] == [224, 224]
    assert all(sum(share for *_, share in form.sides) == pytest.approx(1) for form in SIZES.values())
    assert [crop_px(size) for size in SIZES] == [64, 160, 224, 224, 224, 224]
