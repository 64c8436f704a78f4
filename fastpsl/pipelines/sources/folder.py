"""Folders of images as a list of samples: an ImageFolder tree (class = top folder) or one flat folder.

The order is that of torchvision's ImageFolder: classes sorted, in each the folders sorted by path, in each
the files by name. A tree is walked twice, to count and to yield, so that no list of all its files is held.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastpsl.pipelines.doing import doing
from fastpsl.pipelines.sources.source import EXTENSIONS, Sample, changed, is_image, shard_range

_VAL = ("val", "valid", "validation", "test")


@dataclass
class ImageFolder:
    """A folder of images, counted.

    `shard` (i, n) keeps the i-th of n runs of neighbours, i from 0; labels do not depend on it.
    """

    root: Path
    class_names: list[str] | None
    num_total: int  # images in all shards
    num_ignored: int  # files that are no images, by their names
    shard: tuple[int, int] = (0, 1)
    empty_classes: list[str] = field(default_factory=list)
    mode: str = "jpg"
    notes: list[str] = field(default_factory=list)

    @property
    def num_samples(self) -> int:
        """The number of images in this shard."""
        return len(shard_range(self.num_total, self.shard))

    @property
    def warnings(self) -> list[str]:
        """The classes without an image, and the number of other files."""
        lines = [f"class {name} holds no image; it keeps its label" for name in self.empty_classes]
        if self.num_ignored:
            lines.append(f"{self.num_ignored:,} files are no images by their names; left out")
        return lines

    def samples(self, skip: int = 0) -> Iterator[Sample]:
        """Yield this shard's images in order.

        Raises:
            ValueError: The tree has changed since it was counted.
        """
        try:
            yield from self._samples(skip)
        except OSError as error:
            raise _listing_error(self.root, error) from None

    def _samples(self, skip: int) -> Iterator[Sample]:
        position, positions = 0, shard_range(self.num_total, self.shard)[skip:]
        for label, name in enumerate(self.class_names) if self.class_names else [(-1, "")]:
            folder = self.root / name
            # Not os.path.relpath, which takes a third of the time of listing a million files.
            start = len(os.path.join(folder, ""))
            for path in _images(folder, not self.class_names):
                if position in positions:
                    yield Sample(os.path.join(name, path[start:]), Path(path), label)
                position += 1
        if position != self.num_total:
            raise changed(self.root, self.num_total, position)


def image_folder(root: str | Path, shard: tuple[int, int] = (0, 1)) -> ImageFolder:
    """Count the images below `root`, which are in one folder or in a folder per class.

    Raises:
        ValueError: There are none, or some lie beside the class folders.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; give a folder of images, or one with a folder per class")
    try:
        return _count(root, shard)
    except OSError as error:
        raise _listing_error(root, error) from None


def refuse_parts(root: Path) -> None:
    """Raise ValueError for a folder whose folders are the parts of a data set: train, and val or test."""
    try:
        _refuse_parts(root, _class_folders(root))
    except OSError as error:
        raise _listing_error(root, error) from None


def _refuse_parts(root: Path, classes: Sequence[str]) -> None:
    folders = {name.lower(): name for name in classes}
    val = next((folders[name] for name in _VAL if name in folders), None)
    if val is None or "train" not in folders or not folders.keys() <= {"train", *_VAL}:
        return
    train = folders["train"]
    raise ValueError(
        f"{root}: holds the folders {train} and {val}, which are no classes: give one of them, or for "
        f"training --data {root / train} --val {root / val}"
    )


def _class_folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if _is_folder(entry) and not entry.name.startswith("."))


def _listing_error(root: Path, error: OSError) -> ValueError:
    return ValueError(
        f"{error.filename or root}: cannot be listed ({error.strerror}); make the folder readable"
    )


def _count(root: Path, shard: tuple[int, int]) -> ImageFolder:
    classes = _class_folders(root)
    _refuse_parts(root, classes)
    ignored = [0]
    num_flat = sum(1 for _ in _images(root, True, ignored))
    counts = dict[str, int]()
    with doing(f"{root}: listing", "class folders", len(classes)) as progress:
        for name in classes:
            counts[name] = sum(1 for _ in _images(root / name, False, ignored))
            progress.update(len(counts))
    num_tree = sum(counts.values())
    kinds = ", ".join(EXTENSIONS)
    if not num_flat and not num_tree:
        raise ValueError(
            f"{root}: holds no images ({kinds}); give a folder of images, or one with a folder per class"
        )
    if num_flat and num_tree:
        first = os.path.basename(next(_images(root, True)))
        others_lie = f" and {num_flat - 1:,} more images lie" if num_flat > 1 else " lies"
        raise ValueError(
            f"{root}: {first}{others_lie} beside the class folders {classes[0]}, ...; "
            "give either a flat folder or one folder per class"
        )
    if num_flat:
        return ImageFolder(root, None, num_flat, ignored[0], shard)
    empty = [name for name, count in counts.items() if not count]
    examples = ", ".join(" ".join(name.split()) for name in classes[:3]) + (
        ", ..." if len(classes) > 3 else ""
    )
    notes = [f"{len(classes)} {'class' if len(classes) == 1 else 'classes'}: {examples}"]
    return ImageFolder(root, classes, num_tree, ignored[0], shard, empty, notes=notes)


def _images(root: Path, is_flat: bool, ignored: list[int] | None = None) -> Iterator[str]:
    """Yield the image files in (or, unless flat, below) a folder, in order; count other files."""
    for folder in [str(root)] if is_flat else sorted(_folders(str(root))):
        with os.scandir(folder) as entries:
            files = sorted((entry.name, _can_be_opened(entry)) for entry in entries if not _is_folder(entry))
        for name, can_be_opened in files:
            if is_image(name) and can_be_opened:
                yield os.path.join(folder, name)
            elif ignored is not None:
                ignored[0] += 1


def _folders(root: str) -> Iterator[str]:
    """Yield a folder and all below it, following links but not in circles."""
    waiting = [(root, frozenset[tuple[int, int]]())]
    while waiting:
        folder, above = waiting.pop()
        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue
        yield folder
        with os.scandir(folder) as entries:
            waiting += [(entry.path, above | {identity}) for entry in entries if _is_folder(entry)]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _can_be_opened(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a file or a broken link; a broken link is reported when it is read.

    Pipes are excluded, because opening one would wait.
    """
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True
