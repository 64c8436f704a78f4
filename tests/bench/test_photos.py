"""Made-up photos: distinct, reproducible by seed, with the sizes and the JPEG format of photos."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.photos import BYTES_PER_PIXEL, SIDES, Fields, compare, photo, write_photos, written
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
    whole = sum(map(len, jpegs[:5]))
    sizes = f"5 JPEGs of {whole / 5e3:.1f} KB in the mean, together {whole / 1e6:,.1f} MB"
    size = (tmp_path / "photos.beton").stat().st_size
    assert (
        written(tmp_path / "photos.beton")
        == f"{tmp_path / 'photos.beton'}: {sizes}; the file has {size / 1e6:,.1f} MB"
    )
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


def test_contrast_varies_within_an_image_as_in_photos(jpegs: list[bytes]) -> None:
    """The logarithm of blocks' deviation spreads by 0.94 in clothing photos, with one contrast by 0.3."""
    spreads = []
    for jpeg in jpegs[:8]:
        grey = np.asarray(Image.open(io.BytesIO(jpeg)).convert("L"), np.float64)
        rows, columns = (side // 8 * 8 for side in grey.shape)
        blocks = grey[:rows, :columns].reshape(rows // 8, 8, columns // 8, 8).std((1, 3))
        spreads.append(np.log(blocks + 0.5).std())
    assert np.mean(spreads) > 0.5


def test_decoding_is_timed_beside_others(jpegs: list[bytes]) -> None:
    lines = list(compare(jpegs[:2], jpegs[:2]))
    assert [line.split(":")[0] for line in lines] == ["made", "real", "turbo", "pillow"]
