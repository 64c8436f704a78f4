"""Betons of noise images with labels, for tests in which labels alone count."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastpsl.pipelines.beton.encode import Target
from fastpsl.pipelines.beton.write import write_beton
from fastpsl.pipelines.data.source import Sample


def write_labelled(
    path: Path, labels: Sequence[int], class_names: list[str] | None = None, *, side_px: int = 32
) -> Path:
    """Write a beton of raw, square noise images, named p0, p1, p2, ..., and return its path.

    Args:
        path: The beton.
        labels: A label for each image; -1 is none.
        class_names: The classes' names.
        side_px: The images' side.
    """
    images = np.random.default_rng(0).integers(0, 256, (len(labels), side_px, side_px, 3), dtype=np.uint8)
    samples = [Sample(f"p{i}", *of_one) for i, of_one in enumerate(zip(images, labels, strict=True))]
    write_beton(samples, path, num_samples=len(labels), class_names=class_names, target=Target(mode="raw"))
    return path
