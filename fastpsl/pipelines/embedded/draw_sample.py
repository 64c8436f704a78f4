"""The embedded sample: 640 small images that the project draws itself, as dataset files in the user's cache.

Every recipe without `--data` uses it. Train and test hold JPEGs of 128 to 200 px a side. The 32-px files
hold the middle squares of the same images as raw 32 x 32. The first use draws them in seconds, and processes
that start at the same time wait for one another.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fastpsl.files.caches import cache_folder, cache_remedy
from fastpsl.files.locks import locked
from fastpsl.files.system_errors import UnreadableError
from fastpsl.files.workers import usable_cores
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.embedded.patterns import CLASS_NAMES, draw_image
from fastpsl.pipelines.interface.source import Sample

SEED = 20240
_PAGE_BYTES = 1 << 21  # the least that ffcv allows, because the files are small


def draw_part(part: Path, small: Path, first: int, num: int, version: str) -> None:
    """Draw a part of the sample and write it as two dataset files."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        originals = list(pool.map(_draw, range(first, first + num)))
    for path, images, target in (
        (small, [_square(image) for image in originals], Target(mode="raw")),
        (part, originals, Target(quality=92)),
    ):
        write_beton(
            _samples(images, first), path, num_samples=num, class_names=CLASS_NAMES, target=target,
            overwrite=True, page_bytes=_PAGE_BYTES, record={"source": f"{version}, drawn from seed {SEED}"},
        )  # fmt: skip


def _draw(index: int) -> np.ndarray:
    height, width = np.random.default_rng((SEED, index, 1)).integers((128, 144), (153, 201))
    return draw_image(SEED, index, int(height), int(width))


def _square(image: np.ndarray) -> np.ndarray:
    """Return the middle square at 32 x 32."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(middle.resize((32, 32), Image.Resampling.BOX))


def _samples(images: list[np.ndarray], first: int) -> Iterator[Sample]:
    for position, image in enumerate(images):
        label = (first + position) % len(CLASS_NAMES)
        yield Sample(f"{CLASS_NAMES[label]}/{first + position:04}", image, label)


VERSION = "sample-v2"  # a new name whenever the images change
NUM_TRAIN, NUM_TEST = 480, 160


class SamplePaths(NamedTuple):
    """The paths of the sample's dataset files."""

    train: Path
    test: Path
    train_32: Path
    test_32: Path


def sample_paths(cache: Path | None = None) -> SamplePaths:
    """Return the sample's dataset files, which the first use draws.

    They are equal on every machine but for the version of the JPEG encoder.

    Args:
        cache: The folder for them; by default $XDG_CACHE_HOME or ~/.cache, there fastpsl/sample-v2.

    Raises:
        ValueError: The folder cannot be written.
    """
    folder = (cache or cache_folder()) / VERSION
    paths = SamplePaths(*(folder / f"{name}.beton" for name in SamplePaths._fields))
    if all(map(_is_whole, paths)):
        return paths

    with drawing(folder):
        for part, small, first, num in (
            (paths.train, paths.train_32, 0, NUM_TRAIN),
            (paths.test, paths.test_32, NUM_TRAIN, NUM_TEST),
        ):
            if not (_is_whole(part) and _is_whole(small)):
                draw_part(part, small, first, num, VERSION)
    return paths


def _is_whole(path: Path) -> bool:
    """Return whether a dataset file is there and can be opened; one that is damaged is drawn again."""
    try:
        if path.exists():
            Beton(path).close()
            return True
    except UnreadableError:
        raise
    except ValueError:
        pass
    return False


@contextmanager
def drawing(folder: Path) -> Iterator[None]:
    """Draw in a folder of the cache, a process at a time: one rank draws, the others find the files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock", "waiting for another process, which draws the sample"):
            yield
    except OSError as error:
        advice = cache_remedy(error)
        raise ValueError(f"{folder}: the sample cannot be made there ({error.strerror}); {advice}") from None
