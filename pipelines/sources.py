"""Folders of images as a list of samples: an ImageFolder tree (class = top folder) or one flat folder.

The order is that of torchvision's ImageFolder: classes sorted, in each the folders sorted by path, in each
the files by name. A tree is walked twice, to count and to yield, so that no list of all its files is ever
held.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class Sample:
    """One image to be written: a name for lists and messages, the image, its label (-1 = none)."""

    name: str  # of files: the path relative to the source
    image: "Path | bytes | np.ndarray"  # a file, a file's bytes, or RGB uint8 [H, W, 3]
    label: int


@dataclass
class ImageFolder:
    """A folder of images, counted. `shard` (i, n) keeps the i-th of n runs of neighbours, i from 0; labels do
    not depend on it."""

    root: Path
    class_names: list[str] | None
    num_total: int  # images in all shards
    num_ignored: int  # files that are no images by their names
    shard: tuple[int, int] = (0, 1)
    empty_classes: list[str] = field(default_factory=list)

    @property
    def first(self) -> int:
        return self.num_total * self.shard[0] // self.shard[1]

    @property
    def num_samples(self) -> int:
        """Images in this shard."""
        return self.num_total * (self.shard[0] + 1) // self.shard[1] - self.first

    def samples(self) -> Iterator[Sample]:
        """This shard's images in order. ValueError when the tree has changed since it was counted."""
        try:
            yield from self._samples()
        except OSError as error:
            raise _unlistable(self.root, error) from None

    def _samples(self) -> Iterator[Sample]:
        position, last = 0, self.first + self.num_samples
        for label, name in enumerate(self.class_names) if self.class_names else [(-1, "")]:
            for path in _images(self.root / name, not self.class_names):
                if self.first <= position < last:
                    yield Sample(os.path.relpath(path, self.root), Path(path), label)
                position += 1
        if position != self.num_total:
            raise ValueError(
                f"{self.root}: {self.num_total:,} images at the start, {position:,} at the end; "
                "write again when nothing changes the folder"
            )


def image_folder(root: str | Path, shard: tuple[int, int] = (0, 1)) -> ImageFolder:
    """Count the images below `root`. ValueError when there are none, or some lie beside the class folders."""
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; give a folder of images, or one with a folder per class")
    try:
        return _count(root, shard)
    except OSError as error:
        raise _unlistable(root, error) from None


def _unlistable(root: Path, error: OSError) -> ValueError:
    return ValueError(
        f"{error.filename or root}: cannot be listed ({error.strerror}); make the folder readable"
    )


def _count(root: Path, shard: tuple[int, int]) -> ImageFolder:
    with os.scandir(root) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    ignored = [0]
    num_flat = sum(1 for _ in _images(root, True, ignored))
    counts = {name: sum(1 for _ in _images(root / name, False, ignored)) for name in classes}
    num_tree = sum(counts.values())
    kinds = ", ".join(EXTENSIONS)
    if not num_flat and not num_tree:
        raise ValueError(
            f"{root}: holds no images ({kinds}); give a folder of images, or one with a folder per class"
        )
    if num_flat and num_tree:
        raise ValueError(
            f"{root}: {num_flat:,} images lie beside the folders {classes[0]}, ...; "
            "give either a flat folder or one folder per class"
        )
    if num_flat:
        return ImageFolder(root, None, num_flat, ignored[0], shard)
    empty = [name for name, count in counts.items() if not count]
    return ImageFolder(root, classes, num_tree, ignored[0], shard, empty)


def _images(root: Path, is_flat: bool, ignored: list[int] | None = None) -> Iterator[str]:
    """Image files in (or, unless flat, below) a folder, in order; counts the files that are none into
    `ignored`."""
    for folder in [str(root)] if is_flat else sorted(_folders(str(root), frozenset())):
        with os.scandir(folder) as entries:
            files = sorted(entry.name for entry in entries if not entry.is_dir())
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield os.path.join(folder, name)
            elif ignored is not None:
                ignored[0] += 1


def _folders(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """A folder and all below it, links followed, but not in circles."""
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    yield folder
    with os.scandir(folder) as entries:
        names = [entry.path for entry in entries if entry.is_dir()]
    for name in names:
        yield from _folders(name, above | {identity})
