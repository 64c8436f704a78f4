"""What every source of images gives: named images with labels, in a fixed order, counted beforehand."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fastpsl.pipelines.data.image_file import BrokenImage

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class Sample:
    """One image to be written: a name for lists and messages, the image, its label (-1 = none)."""

    name: str  # of files: the path relative to the source
    # A file, a file's bytes, RGB uint8 [H, W, 3], or why there is none.
    image: "Path | bytes | np.ndarray | BrokenImage"
    label: int


class Source(Protocol):
    """Images to be written, counted. `samples` gives those of one shard: the i-th of n runs of neighbours."""

    @property
    def class_names(self) -> list[str] | None: ...
    @property
    def num_total(self) -> int:
        """Images in all shards, at most."""

    @property
    def num_samples(self) -> int:
        """Images in this shard, at most."""

    @property
    def mode(self) -> str:
        """How it is best stored: "jpg" or "raw"."""

    @property
    def notes(self) -> list[str]:
        """What was chosen for the user, a line each."""

    @property
    def warnings(self) -> list[str]:
        """What the user should look at, a line each."""

    def samples(self) -> Iterator[Sample]:
        """This shard's images in order; ValueError when the source has changed since it was counted."""


def is_image(name: str) -> bool:
    """Whether a file is an image by its name; hidden files are none."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def shard_range(num_total: int, shard: tuple[int, int]) -> range:
    """The positions of shard (i, n), i from 0: the i-th of n runs of neighbours."""
    index, count = shard
    return range(num_total * index // count, num_total * (index + 1) // count)


def parts_of(here: range, counts: Sequence[int]) -> Iterator[tuple[int, range]]:
    """A source in parts of so many samples: (i, positions within part i) of those parts that `here` meets."""
    start = 0
    for i, count in enumerate(counts):
        wanted = range(max(here.start - start, 0), min(here.stop - start, count))
        if wanted:
            yield i, wanted
        start += count


def changed(what: object, num_before: int, num_after: int) -> ValueError:
    """The error of a source that gives other images than were counted."""
    return ValueError(
        f"{what}: {num_before:,} images at the start, {num_after:,} at the end; write again when nothing changes it"
    )
