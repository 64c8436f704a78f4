"""The interface of sources of images: named images with labels, in a fixed order, counted beforehand."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple, Protocol

import numpy as np

from fastpsl.files.leftovers import is_leftover
from fastpsl.pipelines.data.dataset import BadImage
from fastpsl.pipelines.sources.tally import Tally

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif",
    ".avif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".heic", ".heif", ".hif",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One image to be written: a name for lists and messages, the image, and its label (-1 for none)."""

    name: str  # for files, the path relative to the source
    # A file, a file's bytes, RGB uint8 [H, W, 3], or the reason why there is none.
    image: "Path | bytes | np.ndarray | BadImage"
    label: int


class Picks(NamedTuple):
    """A choice of images of a source, for an estimate: how they are chosen, in words, and the images."""

    how: str
    is_random: bool  # otherwise the first images, which may differ from the rest
    samples: Iterator[Sample]


class Source(Protocol):
    """A source of counted images; `samples` yields one shard, the i-th of n runs of neighbours."""

    @property
    def class_names(self) -> list[str] | None: ...
    @property
    def num_total(self) -> int:
        """The number of images in all shards, at most."""

    @property
    def num_samples(self) -> int:
        """The number of images in this shard, at most."""

    @property
    def mode(self) -> str:
        """The best form of storage: "jpg" or "raw"."""

    @property
    def notes(self) -> list[str]:
        """The choices made for the user, a line each."""

    @property
    def warnings(self) -> list[str]:
        """The oddities that the user should look at, a line each."""

    @property
    def left_out(self) -> Tally:
        """What is left out, as far as it is known before the images are read."""

    def samples(self, skip: int = 0) -> Iterator[Sample]:
        """Yield this shard's images in order; raise ValueError when the source has changed since counting.

        Args:
            skip: How many images to leave out at the beginning. They are not read where the source allows it.
        """

    def picks(self, num: int, random: Random) -> Picks:
        """Choose about `num` images of this shard, at random where that is possible without reading all."""


def is_image(name: str) -> bool:
    """Return whether a file is an image by its name; hidden files and leftovers are not."""
    return has_image_ending(name) and not is_leftover(name)


def has_image_ending(name: str) -> bool:
    """Return whether a name ends as an image's; a hidden file's may, too."""
    return name.lower().endswith(EXTENSIONS)


def shard_range(num_total: int, shard: tuple[int, int]) -> range:
    """Return the positions of shard (i, n), i from 0: the i-th of n runs of neighbours."""
    index, count = shard
    return range(num_total * index // count, num_total * (index + 1) // count)


def parts_of(here: range, counts: Sequence[int]) -> Iterator[tuple[int, range]]:
    """Yield (i, positions within part i) for the parts, of `counts` positions each, that `here` overlaps."""
    start = 0
    for i, count in enumerate(counts):
        overlap = range(max(here.start - start, 0), min(here.stop - start, count))
        if overlap:
            yield i, overlap
        start += count


def choose_split(what: object, split: str | None, splits: Collection[str]) -> str:
    """Return the wanted split of a source: the given one, else the part without a name or the only one.

    Args:
        what: The source's name, for messages.
        split: The split that was given, if any.
        splits: The source's splits; "" is a part without a name.

    Raises:
        ValueError: There are several and none was given, or the given one is not among them.
    """
    if not split and ("" in splits or len(splits) == 1):
        return "" if "" in splits else next(iter(splits))
    names = " or ".join(sorted(filter(None, splits)))
    if not split:
        raise ValueError(f"{what}: has several splits; give --split {names}")
    if not names:
        raise ValueError(f"{what}: --split {split}: it has no splits; leave --split out")
    if split not in splits:
        raise ValueError(f"{what}: --split {split} is not among its splits; give --split {names}")
    return split


def changed(what: object, num_before: int, num_after: int) -> ValueError:
    """Build the error of a source that yields other images than were counted."""
    return ValueError(
        f"{what}: {num_before:,} images were counted at the start, {num_after:,} at the end; "
        f"write again when nothing changes it"
    )
