"""Betons with small pages and small raw images, for tests of everything that goes page by page."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fastpsl.pipelines.beton import file as beton_file
from fastpsl.pipelines.beton.encode import Stored
from tests.pipelines.photos import RAW

PAGE_BYTES = 4096
SIDE_PX = 16
SAMPLES_A_PAGE = PAGE_BYTES // (3 * SIDE_PX**2)  # 5


def write_paged(
    monkeypatch: pytest.MonkeyPatch, path: Path, num: int, sides_px: Sequence[int] = (SIDE_PX,)
) -> Path:
    """Write a beton of noise images with labels 0, 1, 2, ... and pages of PAGE_BYTES.

    The format's own smallest page has 2 MiB.

    Args:
        monkeypatch: Lowers the smallest page for the test.
        path: The beton.
        num: The number of images.
        sides_px: The sides of the images, in turn.
    """
    monkeypatch.setattr(beton_file, "MIN_PAGE_BYTES", PAGE_BYTES)
    beton = beton_file.BetonFile(path, num, PAGE_BYTES)
    random = np.random.default_rng(num)
    for label in range(num):
        side = sides_px[label % len(sides_px)]
        beton.add(Stored(random.bytes(3 * side**2), side, side, RAW, "passed"), label)
    beton.finish()
    beton.file.publish()
    return path
