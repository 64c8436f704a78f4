"""Sources of samples to write: the protocol, what is left out of them, and other labels."""

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from shlex import quote
from typing import NamedTuple, Protocol

import numpy as np

from fastpsl.console.words import number_of
from fastpsl.files.leftovers import is_leftover
from fastpsl.pipelines.interface.dataset import BadImage
from fastpsl.pipelines.interface.reading import PLAIN, Reading

BAD, SMALL, OTHERS, LEFTOVERS, REPLACED, SAME_KEY, EMPTY = (
    "bad", "small", "other files", "leftovers", "replaced", "same key", "empty classes"
)  # fmt: skip
_WORDS = {
    BAD: ("bad image", "bad images"),
    SMALL: ("image that is too small", "images that are too small"),
    OTHERS: ("file of another kind", "files of other kinds"),
    LEFTOVERS: ("leftover of another program", "leftovers of other programs"),
    REPLACED: (
        "file that a later one of its name in the tar replaces",
        "files that a later one of their name in the tar replaces",
    ),
    SAME_KEY: ("image that shares the key of another", "images that share the key of another"),
    EMPTY: (
        "class without an image, which keeps its label",
        "classes without an image, which keep their labels",
    ),
}
_SHOWN = 3  # endings of other files
PICKED = 16  # neighbouring images of a part, for an estimate
_ENDING_CHARACTERS = 10  # longer endings, such as in a name with a date, are not told


class Tally:
    """The numbers of the files, images and classes that are left out, by the reason."""

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self.counts = Counter[str](counts or {})  # of each kind in `_WORDS`
        self._first, self._endings = dict[str, str](), Counter[str]()

    def add(self, kind: str, name: str) -> None:
        """Count one; `name` is its path, or a class's name."""
        self.counts[kind] += 1
        if kind == OTHERS:
            ending = os.path.splitext(name)[1].lower()
            self._endings[ending if len(ending) <= _ENDING_CHARACTERS else ""] += 1
        else:
            self._first.setdefault(kind, " ".join(name.split()))

    def update(self, other: "Tally") -> None:
        """Add the numbers of another tally."""
        self.counts.update(other.counts)
        self._endings.update(other._endings)
        self._first = other._first | self._first

    def line(self) -> str:
        """Return all of it in one line, such as "2 bad images, 1 file of another kind (.txt)", or ""."""
        parts = [
            number_of(self.counts[kind], *words) + self._detail(kind)
            for kind, words in _WORDS.items()
            if self.counts[kind]
        ]
        return ", ".join(parts)

    def _detail(self, kind: str) -> str:
        if kind == OTHERS and self._endings:
            shown = [f"{num:,} {ending or 'other'}" for ending, num in self._endings.most_common(_SHOWN)]
            return f" ({', '.join(shown)}{', ...' if len(self._endings) > _SHOWN else ''})"
        if kind not in self._first:
            return ""
        return f" ({'the first is ' if self.counts[kind] > 1 else ''}{self._first[kind]})"


EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif",
    ".avif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".heic", ".heif", ".hif",
)  # fmt: skip


class Packed(NamedTuple):
    """An image's packed coefficients, of which a JPEG is made where it is converted."""

    data: bytes
    height: int
    width: int


@dataclass(frozen=True)
class Sample:
    """One image to be written: a name for lists and messages, the image, and its label (-1 for none)."""

    name: str  # for files, the path relative to the source
    # A file, a file's bytes, coefficients, RGB uint8 [H, W, 3], or the reason why there is none.
    image: "Path | bytes | Packed | np.ndarray | BadImage"
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
        """The best form of storage: "jpg", "raw" or "coefficients"."""

    @property
    def notes(self) -> list[str]:
        """The choices made for the user, a line each."""

    @property
    def warnings(self) -> list[str]:
        """The oddities that the user should look at, a line each."""

    @property
    def left_out(self) -> Tally:
        """The numbers of files and classes that are left out, as far as known before the images are read."""

    @property
    def reading(self) -> Reading:
        """The range and the bands that its pixels are of, which dataset files were written with."""

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


@dataclass(kw_only=True)
class Counted:
    """The common part of sources: how many images each part has, and which shard is read."""

    counts: list[int]  # images in each part, of all shards
    shard: tuple[int, int] = (0, 1)
    class_names: list[str] | None = None
    mode: str = "jpg"
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    left_out: Tally = field(default_factory=Tally)
    reading: Reading = PLAIN

    @property
    def num_total(self) -> int:
        return sum(self.counts)

    @property
    def num_samples(self) -> int:
        return len(self.here)

    @property
    def here(self) -> range:
        """The positions of this shard's images."""
        return shard_range(self.num_total, self.shard)

    @property
    def numbers(self) -> dict[str, int]:
        """The label of each class name."""
        return {name: number for number, name in enumerate(self.class_names or ())}

    def parts(self, skip: int = 0) -> Iterator[tuple[int, range]]:
        """Yield (i, positions within part i) for the parts that hold this shard's images."""
        return parts_of(self.here[skip:], self.counts)

    def shuffled(self, num: int, random: Random) -> tuple[list[tuple[int, range]], int]:
        """Return the parts in random order, and how many images of each are looked at for `num` in all."""
        parts = list(self.parts())
        random.shuffle(parts)
        return parts, max(PICKED, -(-num // len(parts)))


def choose_split(what: object, split: str | None, splits: Collection[str]) -> str:
    """Return the wanted split of a source: the given one, else the part without a name or the only one."""
    if not split and ("" in splits or len(splits) == 1):
        return "" if "" in splits else next(iter(splits))
    names = " or ".join(map(quote, sorted(filter(None, splits))))
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


class Relabelled:
    """A source whose labels count `class_names`; None for no labels. Picks keep the source's own labels."""

    def __init__(self, source: Source, class_names: list[str] | None) -> None:
        self.source, self.class_names = source, class_names
        self.num_total, self.num_samples, self.mode = source.num_total, source.num_samples, source.mode
        self.warnings, self.left_out, self.picks = source.warnings, source.left_out, source.picks
        self.reading = source.reading
        words = f"labels of {len(class_names):,} given classes" if class_names else "no labels: -1"
        self.notes = [*source.notes, words]

    def samples(self, skip: int = 0) -> Iterator[Sample]:
        """Yield the source's samples with other labels."""
        numbers = {name: number for number, name in enumerate(self.class_names or ())}
        labels = [numbers.get(name, -1) for name in self.source.class_names or ()]
        for sample in self.source.samples(skip):
            yield replace(sample, label=labels[sample.label] if numbers and sample.label >= 0 else -1)


def renumbered(what: str, source: Source, class_names: Sequence[str], origin: str) -> Relabelled:
    """Return the source with the labels that `class_names` define."""
    if not source.class_names:
        raise ValueError(
            f"--classes {origin}: the classes of {what} have no names; leave --classes out, or name those of "
            "a folder's images by --labels LIST"
        )
    names = list(class_names)
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"--classes {origin}: {repeated!r} is there twice; name each class once")
    unknown = [name for name in source.class_names if name not in set(names)]
    if unknown:
        raise ValueError(
            f"{what}: {len(unknown):,} of {len(source.class_names):,} classes are not among the "
            f"{len(names):,} of --classes {origin}, the first is {unknown[0]!r} (there: {names[0]!r}, ...); "
            "give the classes of the training set for these images"
        )
    return Relabelled(source, names)
