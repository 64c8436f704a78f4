"""Betons with small pages and small raw images, for tests of everything that goes page by page."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fastpsl.pipelines.beton import file as beton_file
from fastpsl.pipelines.beton.encode import Stored
from fastpsl.pipelines.beton.pages import Extents, Pages
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


def page_of_each(pages: Pages) -> np.ndarray:
    """Return the page of each sample, int64 [num_samples]."""
    page_of_sample = np.full(int(pages.starts[-1]), -1)
    for page in range(len(pages.starts) - 1):
        page_of_sample[pages.samples_of(page)] = page
    return page_of_sample


def pages_with(page_of_sample: np.ndarray, num_pages: int) -> Pages:
    """Return pages that lie in no file, with these samples."""
    starts = np.append(0, np.cumsum(np.bincount(page_of_sample, minlength=num_pages)))
    nowhere = Extents(*(np.zeros(num_pages, np.int64) for _ in range(3)))
    return Pages(nowhere, starts, np.argsort(page_of_sample, kind="stable"))
