"""Folders of images as a list of samples: an ImageFolder tree (class = top folder) or one flat folder.

Dataset files are written from these samples, and datasets/open_folder.py takes their names and labels.

A tree whose only folder is called images or alike has no classes, and one of train, val and test is refused.

The order is that of torchvision's ImageFolder: classes sorted, in each the folders sorted by path, in each
the files by name. A tree is walked twice, to count and to yield, so that no list of all its files is held.
What is hidden or left by other programs (`leftovers`) is never looked into.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import IO

from fastpsl.console.progress import operation
from fastpsl.console.words import number_of, pasted
from fastpsl.files.leftovers import is_leftover
from fastpsl.files.paths import named_files, require_existing
from fastpsl.files.remote.address import RemoteObject, is_remote, open_stream, remote_objects
from fastpsl.files.system_errors import input_errors, raise_of_the_system
from fastpsl.pipelines.interface import source
from fastpsl.pipelines.readers.text_lists import entries, open_text

SourceFile = Path | RemoteObject
"""A file; its `name` is the last part of its path or address, and `str` is all of it."""


def source_files(src: str, allowed: str) -> list[SourceFile]:
    """Return the files that a path, an address or a glob names, sorted by name."""
    if is_remote(src):
        return list(remote_objects(src, "the address of tars or Parquet files, or a quoted glob of them"))
    require_existing(src, allowed)
    return list[SourceFile](named_files(src))


def size_of(file: SourceFile) -> int:
    """Return a file's size in bytes; raise OSError where it cannot be read."""
    return file.num_bytes if isinstance(file, RemoteObject) else file.stat().st_size


def open_file(file: SourceFile) -> IO[bytes]:
    """Open a file for reading; raise OSError where it cannot be read."""
    return open_stream(file) if isinstance(file, RemoteObject) else open(file, "rb")


# Names in lower case.
PARTS = ("train", "val", "valid", "validation", "test")
WITHOUT_CLASSES = ("images", "image", "imgs", "img", "jpegs", "jpeg", "jpegimages", "photos", "pictures")
_MAX_LINE = 4096


def parts_error(root: Path, parts: Sequence[str]) -> ValueError:
    """Build the error of a folder whose folders are the parts of a data set."""
    by_name = {name.lower(): root / name for name in parts}
    first = by_name.get("train", root / parts[0])
    second = next((path for name, path in by_name.items() if name != "train" and path != first), None)
    training = f"--data {pasted(first)}" + (f" --val {pasted(second)}" if second else "")
    return ValueError(
        f"{root}: holds parts of a data set ({', '.join(parts)}), not classes: write each alone, "
        f"as in `fastpsl data write {pasted(first)} {pasted(f'{first.name}.beton')}`, or train with "
        f"{training}; `fastpsl data write {pasted(root)} OUT --classes folders` takes them as classes"
    )


def tar_parts_error(name: str, parts: Sequence[str]) -> ValueError:
    """Build the error of tars whose folders are the parts of a data set, as in `parts_error`."""
    return ValueError(
        f"{name}: holds parts of a data set ({', '.join(parts)}), not classes: make a tar of each, "
        "or unpack it and write each folder alone; --classes folders takes them as classes"
    )


def list_beside(root: Path, folder: str) -> Path | None:
    """Return a list in `root` that names a label of an image in `root`/`folder`, or None."""
    for name in sorted(os.listdir(root)):
        path = root / name
        if not name.lower().endswith((".txt", ".csv")) or is_leftover(name) or not path.is_file():
            continue
        with open_text(path) as file:
            is_binary = len(file.readline(_MAX_LINE)) == _MAX_LINE
        try:
            entry = None if is_binary else next(entries(path), None)
        except ValueError:  # a text that is no list
            continue
        places = (root, root / folder) if entry and entry.label is not None else ()
        if any(entry and os.path.isfile(os.path.join(place, entry.path)) for place in places):
            return path
    return None


@dataclass
class ImageFolder(source.Counted):
    """A folder of images; its parts are the classes."""

    root: Path
    folders: list[str]  # directly in the root, in the order of labels; none of a flat folder

    def samples(self, skip: int = 0) -> Iterator[source.Sample]:
        """Yield this shard's images in order."""
        position, positions = 0, self.here[skip:]
        with input_errors(self.root):
            for number in range(len(self.counts)):
                for name, path, label in self._class(number):
                    if position in positions:
                        yield source.Sample(name, Path(path), label)
                    position += 1
        if position != self.num_total:
            raise source.changed(self.root, self.num_total, position)

    def _class(self, number: int) -> Iterator[tuple[str, str, int]]:
        """Yield each image's name below the root, its path and its label; a flat folder is one class."""
        name = self.folders[number] if self.folders else ""
        label = number if self.class_names else -1
        folder = self.root / name
        # Not os.path.relpath, which takes a third of the time of listing a million files.
        start = len(os.path.join(folder, ""))
        for path in _images(folder, not self.folders):
            yield os.path.join(name, path[start:]), path, label

    def picks(self, num: int, random: Random) -> source.Picks:
        """Choose images at random; only the folders of their classes are listed, in random order."""
        starts = [0, *accumulate(self.counts)]
        wanted = dict[int, set[int]]()
        for position in random.sample(self.here, min(num, self.num_samples)):
            number = bisect_right(starts, position) - 1
            wanted.setdefault(number, set()).add(position - starts[number])
        samples = (
            source.Sample(name, Path(path), label)
            for number, places in wanted.items()
            for place, (name, path, label) in enumerate(self._class(number))
            if place in places
        )
        return source.Picks("picked at random", True, samples)


def image_folder(
    root: str | Path, shard: tuple[int, int] = (0, 1), *, are_classes: bool = False
) -> ImageFolder:
    """Count the images below `root`, which are in one folder or in a folder per class.

    `shard` (i, n) keeps the i-th of n runs of neighbours. With `are_classes`, folders are classes whatever
    they are called.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; give a folder of images, or one with a folder per class")
    with input_errors(root):
        return _count(root, shard, are_classes)


def image_names(root: Path) -> Iterator[str]:
    """Yield the names of the samples of `image_folder`, and list no more folders than need be."""
    with input_errors(root):
        for name in ("", *_class_folders(root)):
            folder = root / name  # of ".", its path does not begin with that of the root
            start = len(os.path.join(folder, ""))
            for path in _images(folder, not name):
                yield os.path.join(name, path[start:])


def folder_classes(root: Path) -> list[str] | None:
    """Return the names of a folder's classes, without counting its images; None of a folder without."""
    with input_errors(root):
        classes = _class_folders(root)
        without = _without_classes(root, classes) or next(_images(root, True), None)
    return None if without else classes or None


def _without_classes(root: Path, classes: Sequence[str]) -> str | None:
    """Return the only folder of images if its name is that of no class."""
    parts = [name for name in classes if name.lower() in PARTS]
    if parts and not _others_hold_images(root, parts, classes):
        raise parts_error(root, parts)
    only = [name for name in classes if name.lower() in WITHOUT_CLASSES]
    if len(only) != 1 or _others_hold_images(root, only, classes) or not _holds_image(root / only[0]):
        return None
    if labels := list_beside(root, only[0]):
        raise ValueError(
            f"{root}: its only folder, {only[0]}, is not a class, and {labels.name} has the images' classes: "
            f"give the list, as in `fastpsl data write {pasted(labels)} OUT`; "
            f"for images without labels give {pasted(root / only[0])}"
        )
    return only[0]


def _others_hold_images(root: Path, names: Sequence[str], classes: Sequence[str]) -> bool:
    return any(_holds_image(root / name) for name in classes if name not in names)


def _holds_image(folder: Path) -> bool:
    return any(next(_images(Path(each), True), None) for each in _folders(str(folder)))


def _class_folders(root: Path) -> list[str]:
    """Return the names of the folders in `root`, sorted; a run's folder is refused."""
    if (root / "metrics.jsonl").is_file():
        raise ValueError(f"{root}: is a run's folder; give images, not what was trained")
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if not is_leftover(entry.name) and _is_folder(entry))


def _count(root: Path, shard: tuple[int, int], are_classes: bool) -> ImageFolder:
    classes = _class_folders(root)
    without = None if are_classes else _without_classes(root, classes)
    left_out = source.Tally()
    num_flat = sum(1 for _ in _images(root, True, left_out))
    counts = dict[str, int]()
    with operation(f"{root}: listing", "class folders", len(classes)) as progress:
        for name in classes:
            counts[name] = sum(1 for _ in _images(root / name, False, left_out))
            progress.update(len(counts))
    num_tree = sum(counts.values())
    kinds = ", ".join(source.EXTENSIONS)
    if not num_flat and not num_tree:
        some = ", ".join(classes[:3]) + ", ..." * (len(classes) > 3)
        folders = f", in {number_of(len(classes), 'folder')} ({some})" if classes else ""
        raise ValueError(
            f"{root}: holds no images ({kinds}) but {left_out.line() or 'nothing'}{folders}; "
            "give a folder of images, or one with a folder per class"
        )
    if num_flat and num_tree:
        first = os.path.basename(next(_images(root, True)))
        others_lie = f" and {num_flat - 1:,} more images lie" if num_flat > 1 else " lies"
        raise ValueError(
            f"{root}: {first}{others_lie} beside the class folders {classes[0]}, ...; "
            "give either a flat folder or one folder per class"
        )
    if num_flat:
        labels = list_beside(root, "")
        told = f"; {labels.name} names their classes, and may be given instead" if labels else ""
        notes = [f"no class folders: images without labels{told}"]
        return ImageFolder(root, [], counts=[num_flat], left_out=left_out, shard=shard, notes=notes)
    if without:
        hint = (
            f"the only folder, {without}, is taken as no class: images without labels; give the folder above "
            "the class folders, or a list with the classes"
        )
        return ImageFolder(
            root, [without], counts=[num_tree], left_out=left_out, shard=shard, warnings=[hint]
        )
    for name, count in counts.items():
        if not count:
            left_out.add(source.EMPTY, name)
    shown = [" ".join(name.split()) for name in classes[:3]] + ["..."] * (len(classes) > 3)
    examples = ", ".join(shown)
    notes = [f"{len(classes)} {'class' if len(classes) == 1 else 'classes'}: {examples}"]
    return ImageFolder(
        root,
        classes,
        counts=list(counts.values()),
        class_names=classes,
        left_out=left_out,
        shard=shard,
        notes=notes,
    )


def _images(root: Path, is_flat: bool, left_out: source.Tally | None = None) -> Iterator[str]:
    """Yield the image files in (or, unless flat, below) a folder, in order; count what is left out."""
    for folder in [str(root)] if is_flat else sorted(_folders(str(root))):
        with os.scandir(folder) as entries:
            files = sorted(
                (entry.name, _can_be_opened(entry))
                for entry in entries
                if is_leftover(entry.name) or not _is_folder(entry)
            )
        for name, can_be_opened in files:
            if source.is_image(name) and can_be_opened:
                yield os.path.join(folder, name)
            elif left_out is not None:
                left_out.add(source.LEFTOVERS if is_leftover(name) else source.OTHERS, name)


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
            waiting += [
                (entry.path, above | {identity})
                for entry in entries
                if not is_leftover(entry.name) and _is_folder(entry)
            ]


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # a link to itself
        raise_of_the_system(entry.path, error)
        return False


def _can_be_opened(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a file or a broken link; a broken link is reported when it is read.

    Pipes are excluded, because opening one would wait.
    """
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True
