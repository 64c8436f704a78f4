"""Betons with small pages and small raw images, for tests of everything that goes page by page."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fastpsl.pipelines.beton import file as beton_file
from fastpsl.pipelines.beton.pages import Extents, Pages
from tests.pipelines.photos import RAW, write

PAGE_BYTES = 4096
SIDE_PX = 16
SAMPLES_A_PAGE = PAGE_BYTES // (3 * SIDE_PX**2)  # 5


def write_paged(
    monkeypatch: pytest.MonkeyPatch, path: Path, num: int, sides_px: Sequence[int] = (SIDE_PX,)
) -> Path:
    """Write a beton of `num` noise images with labels 0, 1, 2, ..., sides in turn, and pages of PAGE_BYTES.

    The format's own smallest page has 2 MiB, which the test lowers.
    """
    monkeypatch.setattr(beton_file, "MIN_PAGE_BYTES", PAGE_BYTES)
    random, sides = np.random.default_rng(num), [sides_px[i % len(sides_px)] for i in range(num)]
    return write(path, [(random.bytes(3 * side**2), side, side, RAW) for side in sides], PAGE_BYTES)


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
