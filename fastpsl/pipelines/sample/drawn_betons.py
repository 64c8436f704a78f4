"""The drawing and writing of the embedded sample's dataset files, at its first use."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from fastpsl.files.workers import usable_cores
from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.sample.landscapes import CLASS_NAMES, draw_image
from fastpsl.pipelines.sources.source import Sample

SEED = 20240
_PAGE_BYTES = 1 << 21


def draw_part(part: Path, small: Path, first: int, num: int, version: str) -> None:
    """Draw a part of the sample and write it as two dataset files.

    Args:
        part: The dataset file of JPEGs.
        small: The dataset file of raw images of 32 x 32.
        first: The number of the first image.
        num: The number of images.
        version: The name of the sample's version, for the files' records.
    """
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
