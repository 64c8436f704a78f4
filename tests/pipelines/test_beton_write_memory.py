"""Writing betons takes the same memory for any number of images, from every kind of source."""

import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from tests.pipelines.memory import printed_by

SIDE_PX = 160  # 77 kB an image
SMALL, LARGE = 60, 1800  # 5 MB, 138 MB
WRITE = """
import sys
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.datasets.open import open_source
out, *sources = sys.argv[1:]
target = Target(mode="raw")
for path in sources:
    source = open_source(path)
    write_beton(source.samples(), out, num_samples=source.num_samples, target=target, overwrite=True)
    print(peak_mib())
"""


def ppm(image: np.ndarray) -> bytes:
    return b"P6 %d %d 255\n" % image.shape[1::-1] + image.tobytes()


def random_images(num: int) -> Iterator[np.ndarray]:
    image = np.random.default_rng(0).integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    return (np.roll(image, i, 0) for i in range(num))


def make(path: Path, num: int) -> Path:
    if path.suffix == ".npz":
        np.savez(path, images=np.stack(list(random_images(num))), labels=np.zeros(num, int))
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
        for i, image in enumerate(random_images(num)):
            data, info = ppm(image), tarfile.TarInfo(f"class/{i}.ppm")
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["tar", "npz"])
def test_memory_does_not_grow_with_the_source(ending: str, tmp_path: Path) -> None:
    """27 times the data take at most 25 MiB more."""
    sources = [make(tmp_path / f"{num}.{ending}", num) for num in (SMALL, LARGE)]
    small, large = printed_by(WRITE, tmp_path / "out", *sources)
    assert large - small < 25


@pytest.mark.slow
def test_memory_by_the_number_of_samples(tmp_path: Path) -> None:
    """A sample takes 4 bytes for its size and about 10 for its packed name, always below 60 bytes."""
    script = """
import sys
import numpy as np
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.data.source import Sample
image = np.zeros((2, 2, 3), np.uint8)
for num in (5_000, 155_000):
    samples = (Sample(f"class/{i}.jpg", image, 0) for i in range(num))
    write_beton(samples, sys.argv[1], num_samples=num, target=Target(mode="raw"), overwrite=True)
    print(peak_mib())
"""
    small, large = printed_by(script, tmp_path / "a")
    assert (large - small) * 2**20 < 60 * 150_000
