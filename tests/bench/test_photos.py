"""Made-up photos: distinct, reproducible by seed, with the sizes and the JPEG format of photos."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.photos import Fields, photo, write_photos
from bench.sizes import SIZES
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
