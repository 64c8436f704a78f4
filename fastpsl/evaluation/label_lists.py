"""Which training images keep their labels in semi-supervised learning: drawn class-balanced, the first, or a published list."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.sidecar import read_sidecar
from fastpsl.pipelines.data.dataset import Dataset, require_labels
from fastpsl.pipelines.data.subset import Subset
from fastpsl.pipelines.files.atomic import write_atomically
from fastpsl.pipelines.files.bounded import read_npy

# Draws of no epoch of training and no view: the choice of images, and that of classes which get one image more.
_IMAGES, _CLASSES = 0, 1
_MAX_BYTES = 1 << 32  # of a list: 14 million paths of 75 characters


def labelled_part(data: Dataset, percent: float, seed: int, path: Path | None = None) -> Subset:
    """The samples of `data` that keep their labels: those of the list at `path`, else `percent` % drawn by `seed`."""
    if path is not None:
        return Subset(data, read_label_list(path, data))
    require_labels(data, "--percent")
    return Subset(data, draw_label_list(data.labels(), data.num_classes, percent, seed, data.class_names))


def draw_label_list(
    labels: np.ndarray, num_classes: int, percent: float, seed: int, class_names: Sequence[str] | None = None
) -> np.ndarray:
    """int64, sorted: places of `percent` % of `labels` (integers [n], 0 to num_classes - 1), equally many of each class.

    As SimCLR's lists, which the paper does not name: floor(1 %) of all images, the same number of each class, and one more of as
    many classes as are left over (ImageNet at 1 %: 811 classes with 13 and 189 with 12). A function of seed, labels and
    percent alone. ValueError where a class has too few: its own share must be an image at least, and it must have as many as
    the others give.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"--percent {percent:g}: it must be above 0 and at most 100")
    sizes = np.bincount(labels, minlength=num_classes)
    each, left_over = divmod(int(len(labels) * percent / 100 + 1e-9), num_classes)
    smallest = int(sizes.argmin())
    least = int(sizes[smallest])
    if least * percent < 100 or each < 1:
        name = class_names[smallest] if class_names else f"class {smallest}"
        raise ValueError(
            f"--percent {percent:g} of {name}, which has {least} image{'s' * (least != 1)}, is not one image: give "
            + (f"--percent {100 / least:.3g} or more, " if least else "data without empty classes, ")
            + "or choose the images by --label-list"
        )
    needed = np.full(num_classes, each)
    needed[_first_of_shuffled(np.arange(num_classes), seed, _CLASSES)[:left_over]] += 1
    if (sizes < needed).any():
        short = int((sizes < needed).argmax())
        name = class_names[short] if class_names else f"class {short}"
        raise ValueError(
            f"--percent {percent:g} takes {needed[short]} images of each class, and {name} has {sizes[short]}: "
            "lower --percent, or choose the images by --label-list"
        )
    shuffled = _first_of_shuffled(np.arange(len(labels)), seed, _IMAGES)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    return np.sort(np.concatenate([by_class[s : s + n] for s, n in zip(starts, needed, strict=True)]))


def first_of_each_class(
    labels: np.ndarray, num_classes: int, num: int, class_names: Sequence[str] | None = None
) -> np.ndarray:
    """int64 [num * num_classes], sorted: places of the first `num` of each class in `labels` (integers [n]).

    ValueError where a class has fewer.
    """
    if num < 1:
        raise ValueError(f"--labels-per-class {num}: it must be 1 or more")
    sizes = np.bincount(labels, minlength=num_classes)
    if sizes.min() < num:
        short, least = int(sizes.argmin()), int(sizes.min())
        name = class_names[short] if class_names else f"class {short}"
        raise ValueError(
            f"--labels-per-class {num}: {name} has {least} image{'s' * (least != 1)}; give "
            + (f"{least} or fewer" if least else "data without empty classes")
        )
    by_class = np.argsort(labels, kind="stable")
    firsts = (np.cumsum(sizes) - sizes)[:, None] + np.arange(num)
    return np.sort(by_class[firsts.ravel()]).astype(np.int64, copy=False)


def _first_of_shuffled(values: np.ndarray, seed: int, what: int) -> np.ndarray:
    """`values` (0 to n - 1) in the order of their random words."""
    drawn = words(Keys(seed, what, values.astype(np.int64)), Slot.TASK, 2).astype(np.uint64)
    return np.argsort(drawn[:, 0] << np.uint64(32) | drawn[:, 1], kind="stable")


def read_label_list(path: Path, data: Dataset) -> np.ndarray:
    """int64: the samples of `data` that a list names, in the list's order.

    A text file with one sample a line: its place in the data, a file name (n01440764_10026.JPEG, as SimCLR's lists have
    them) or a path (n01440764/n01440764_10026.JPEG); or a .npy of places or of paths, as VISSL's file lists are (PIRL's). A path means
    the sample with the same last two parts, else, where its folder is none of the classes, the one with the same file name;
    endings do not count. ValueError for an empty list, names that are not in the data or not there once, and what is named
    twice.
    """
    entries = _read_npy(path) if path.suffix == ".npy" else os.fsdecode(path.read_bytes()).splitlines()
    entries = [entry for entry in map(str.strip, entries) if entry]
    if not entries:
        raise ValueError(f"--label-list {path} names no image: give one a line")
    if all(entry.isdecimal() for entry in entries):
        last = str(data.num_samples - 1)
        largest = max((entry.lstrip("0") for entry in entries), key=lambda digits: (len(digits), digits))
        if len(largest) > len(last) or int(largest or 0) >= data.num_samples:
            shown = largest if len(largest) <= 20 else f"{largest[:20]}... of {len(largest):,} digits"
            raise ValueError(
                f"--label-list {path} names sample {shown}, and the data has 0 to {data.num_samples - 1:,}: "
                "give the list that belongs to this data"
            )
        found = np.array([int(entry) for entry in entries], np.int64)
    else:
        found = _find(entries, path, data)
    values, counts = np.unique(found, return_counts=True)
    if counts.max() > 1:
        twice = data.name(int(values[counts > 1][0]))
        raise ValueError(f"--label-list {path} names {twice} {counts.max()} times: name each image once")
    return found


def _read_npy(path: Path) -> list[str]:
    try:
        array = read_npy(path, _MAX_BYTES)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"--label-list {path} cannot be read ({error}): save it as an array of strings or integers"
        ) from None
    if array.dtype.kind not in "iuUS":
        raise ValueError(f"--label-list {path} holds no strings and no integers: give paths or places")
    if array.dtype.kind == "S":
        return [os.fsdecode(entry) for entry in array.ravel().tolist()]
    return [str(entry) for entry in array.ravel().tolist()]


def _find(entries: list[str], path: Path, data: Dataset) -> np.ndarray:
    """Places of named samples; only the list's own names are kept in memory, not those of millions of samples."""
    by_path: dict[str, list[int]] = {_last_two(entry): [] for entry in entries}
    by_name: dict[str, list[int]] = {_stem(entry): [] for entry in entries}
    classes = set(data.class_names or ())
    for place, name in enumerate(source_names(data)):
        if (places := by_path.get(_last_two(name))) is not None:
            places.append(place)
        if (places := by_name.get(_stem(name))) is not None:
            places.append(place)
    found, absent = [], []
    for entry in entries:
        # cat/1.jpg is not dog/1.jpg: where a class is named, its folder counts.
        of_a_class = PurePosixPath(entry).parent.name in classes
        places = by_path[_last_two(entry)] or ([] if of_a_class else by_name[_stem(entry)])
        if len(places) > 1:
            raise ValueError(
                f"--label-list {path} names {entry}, and {len(places)} samples are called so (the first: "
                f"{data.name(places[0])}): give their folders too, as class/name"
            )
        if places:
            found.append(places[0])
        else:
            absent.append(entry)
    if absent:
        raise ValueError(
            f"--label-list {path} names {absent[0]}, which is not in the data ({len(absent):,} of {len(entries):,} names are "
            f"not; the data's first is {next(iter(source_names(data)))}): give the data that the list was made for"
        )
    return np.array(found, np.int64)


def _last_two(name: str) -> str:
    """Folder and file name, without its ending; with a file name alone, nothing else has this."""
    parts = PurePosixPath(name).parts
    return "/".join((*parts[-2:-1], _stem(name)))


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def source_names(data: Dataset) -> Iterator[str]:
    """Each sample's path in the folder or the archive that it came from, in the order of the data. ValueError where it is not known."""
    if not isinstance(data, Beton):
        yield from (data.name(i) for i in range(data.num_samples))
        return
    for shard in data.shards:
        sidecar = read_sidecar(shard.path)
        if sidecar is None or not sidecar.packed_paths:
            raise ValueError(
                f"{shard.path} does not know its images' names, which are in the JSON beside it ({shard.path.name}.json): "
                "copy that too, or let the list give places in the data"
            )
        yield from sidecar.source_paths()


def write_label_list(path: Path, indices: np.ndarray) -> Path:
    """One place in the data a line, as `read_label_list` reads it."""
    write_atomically(path, "".join(f"{index}\n" for index in indices.tolist()).encode())
    return path
