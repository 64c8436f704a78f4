"""Choose the images that keep their labels: a part of all, a list, or few of each class."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from typing_extensions import override

from fastpsl.console.words import cut, number_of
from fastpsl.files.atomic import write_atomically
from fastpsl.files.untrusted import read_npy
from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.sidecar import read_sidecar
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.interface.dataset import Dataset, require_labels
from fastpsl.pipelines.loader.order import sort_keys
from fastpsl.pipelines.readers.text_lists import lines_of, require_text, table_of
from fastpsl.tasks.classify import Classify

# These take the place of the epoch in the random words: images, classes that get one image more, and from
# _DRAWS on the images of each draw.
_IMAGES, _CLASSES, _DRAWS = 0, 1, 2
_MAX_BYTES = 1 << 32  # of a list, enough for 14 million paths of 75 characters


def labelled_part(data: Dataset, percent: float, seed: int, path: Path | None = None) -> Subset:
    """Return the samples that keep their labels: those in the list at `path`, or `percent` % by `seed`."""
    if path is not None:
        return Subset(data, read_label_list(path, data))
    require_labels(data, "--percent")
    return Subset(data, draw_label_list(data.labels(), data.num_classes, percent, seed, data.class_names))


def draw_label_list(
    labels: np.ndarray, num_classes: int, percent: float, seed: int, class_names: Sequence[str] | None = None
) -> np.ndarray:
    """Draw equally many samples of each class, and return their indices, sorted, int64.

    PSL does not name its lists; this follows SimCLR's. Their size is floor(1 %) of all images. Each class
    gives the same number, and as many classes as are left over give one more (ImageNet at 1 %: 811 classes
    give 13 and 189 give 12). The draw is a function of seed, labels (integers [n]) and percent alone.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"--percent {percent:g}: it must be above 0 and at most 100")
    sizes = np.bincount(labels, minlength=num_classes)
    per_class, left_over = divmod(int(len(labels) * percent / 100 + 1e-9), num_classes)
    names = class_names or [f"class {label}" for label in range(num_classes)]
    smallest, least = int(sizes.argmin()), int(sizes.min())
    if least * percent < 100 or per_class < 1:
        remedy = f"--percent {100 / least:.3g} or more" if least else "data without empty classes"
        raise ValueError(
            f"--percent {percent:g} of {names[smallest]}, which has {number_of(least, 'image')}, "
            f"is not one image: give {remedy}, or choose the images by --label-list"
        )
    needed = np.full(num_classes, per_class)
    needed[_shuffled(num_classes, seed, _CLASSES)[:left_over]] += 1
    if (sizes < needed).any():
        short = int((sizes < needed).argmax())
        raise ValueError(
            f"--percent {percent:g} takes {needed[short]} images of each class, and {names[short]} has "
            f"{sizes[short]}: lower --percent, or choose the images by --label-list"
        )
    return _first_of(_shuffled(len(labels), seed, _IMAGES), labels, needed)


def first_of_each_class(
    labels: np.ndarray,
    num_classes: int,
    num: int,
    class_names: Sequence[str] | None = None,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """Return the indices of the first `num` samples of each class, sorted, int64 [num * num_classes].

    They are the first in `order` (indices), or else in that of the data. Samples without a label are left
    out.
    """
    if num < 1:
        raise ValueError(f"--labels-per-class {num}: it must be 1 or more")
    sizes = np.bincount(labels[labels >= 0], minlength=num_classes)
    if sizes.min() < num:
        smallest, least = int(sizes.argmin()), int(sizes.min())
        name = class_names[smallest] if class_names else f"class {smallest}"
        remedy = f"{least} or fewer" if least else "data without empty classes"
        raise ValueError(f"--labels-per-class {num}: {name} has {number_of(least, 'image')}; give {remedy}")
    order = np.arange(len(labels)) if order is None else order
    return _first_of(order[labels[order] >= 0], labels, np.full(num_classes, num))


def _first_of(order: np.ndarray, labels: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Return the first needed[c] samples of each class c in `order`, sorted, int64."""
    by_class = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels[order], minlength=len(needed))
    starts = np.cumsum(sizes) - sizes
    return np.sort(np.concatenate([by_class[s : s + n] for s, n in zip(starts, needed, strict=True)]))


def _shuffled(num: int, seed: int, what: int) -> np.ndarray:
    """Return 0 to num - 1 in the order of their random words, int64."""
    random_words = words(Keys(seed, what, np.arange(num)), Slot.TASK, 2).astype(np.uint64)
    return np.argsort(random_words[:, 0] << np.uint64(32) | random_words[:, 1], kind="stable")


@dataclass(frozen=True)
class Draws:
    """The draws of a few labelled images of each class.

    Attributes:
        pool: All images that any draw has.
        images: By the number of images of each class: those of each draw, as sorted indices of the data set
            that was drawn from, int64.
    """

    pool: Subset
    images: dict[int, list[np.ndarray]]

    def rows(self, num: int, draw: int) -> np.ndarray:
        """Return a draw's rows of `pool`, int64."""
        return np.searchsorted(self.pool.positions, self.images[num][draw])


def draw_few(data: Dataset, nums: Sequence[int], num_draws: int, seed: int) -> Draws:
    """Draw `nums` samples of each class, several times.

    A draw shuffles all samples by `seed` and its number, and takes the first of each class. So its smaller
    numbers are parts of its larger ones.

    Raises:
        ValueError: There are fewer than two classes, or a class has fewer samples.
    """
    labels = data.labels()
    if data.num_classes < 2 or not (labels >= 0).any():
        raise ValueError(
            f"--labels-per-class: the data has {number_of(data.num_classes, 'class', 'classes')}, and a "
            "classifier tells two or more apart; give a folder with one sub-folder per class"
        )
    images: dict[int, list[np.ndarray]] = {num: [] for num in nums}
    for draw in range(num_draws):
        order = _shuffled(len(labels), seed, _DRAWS + draw)
        for num, draws in images.items():
            draws.append(first_of_each_class(labels, data.num_classes, num, data.class_names, order))
    return Draws(Subset(data, np.unique(np.concatenate(images[max(nums)]))), images)


def read_label_list(path: Path, data: Dataset) -> np.ndarray:
    """Return the samples of `data` that a list names, in the list's order, int64.

    The list is a text file with a sample per line, a table (text_lists.py) or a .npy array. All hold indices
    into the data, file names (n01440764_10026.JPEG, as in SimCLR's lists) or paths
    (n01440764/n01440764_10026.JPEG, as in VISSL's lists for PIRL). A path names the sample with the same last
    two parts. If there is none and the path's folder is no class, it names the sample with the same file
    name. File name extensions are ignored.
    """
    if path.suffix == ".npy":
        entries = _read_npy(path)
    elif table := table_of(path):
        entries = [entry.path for entry in table.entries()]
    else:
        entries = list(lines_of(path))
    entries = [entry for entry in map(str.strip, entries) if entry]
    if not entries:
        raise ValueError(f"--label-list {path} names no image: give one per line")
    if all(entry.isdecimal() for entry in entries):
        largest = max((entry.lstrip("0") for entry in entries), key=lambda digits: (len(digits), digits))
        if len(largest) > len(str(data.num_samples)) or int(largest or 0) >= data.num_samples:
            raise ValueError(
                f"--label-list {path} names sample {cut(largest)}, and the data has 0 to "
                f"{data.num_samples - 1:,}: give the list that belongs to this data"
            )
        indices = np.array([int(entry) for entry in entries], np.int64)
    else:
        indices = _find(entries, path, data)
    values, counts = np.unique(indices, return_counts=True)
    if counts.max() > 1:
        name = data.name(int(values[counts > 1][0]))
        raise ValueError(f"--label-list {path} names {name} {counts.max()} times: name each image once")
    return indices


def _read_npy(path: Path) -> list[str]:
    try:
        array = read_npy(path, _MAX_BYTES)
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"--label-list {path} cannot be read ({error}): save it as an array of strings or integers"
        ) from None
    if array.dtype.kind not in "iuUS":
        raise ValueError(f"--label-list {path} holds no strings and no integers: give paths or positions")
    return [os.fsdecode(each) if isinstance(each, bytes) else str(each) for each in array.ravel().tolist()]


def _find(entries: list[str], path: Path, data: Dataset) -> np.ndarray:
    """Return the indices of named samples; only the list's names are in memory, as data may have millions."""
    by_path: dict[str, list[int]] = {_last_two(entry): [] for entry in entries}
    by_name: dict[str, list[int]] = {_stem(entry): [] for entry in entries}
    classes = set(data.class_names or ())
    for index, name in enumerate(source_names(data)):
        for matches in (by_path.get(_last_two(name)), by_name.get(_stem(name))):
            if matches is not None:
                matches.append(index)
    indices, missing = list[int](), list[str]()
    for entry in entries:
        # A folder that names a class must match, because cat/1.jpg is not dog/1.jpg.
        in_class = PurePosixPath(entry).parent.name in classes
        found = by_path[_last_two(entry)] or ([] if in_class else by_name[_stem(entry)])
        if len(found) > 1:
            raise ValueError(
                f"--label-list {path} names {cut(entry)}, and {len(found)} samples have that name (the "
                f"first: {data.name(found[0])}): give their folders too, as class/name"
            )
        indices += found
        missing += [] if found else [entry]
    if missing:
        require_text(path, "".join(missing))
        raise ValueError(
            f"--label-list {path} names {cut(missing[0])}, which is not in the data ({len(missing):,} of "
            f"{len(entries):,} names are not; the data's first is {next(iter(source_names(data)))}): give "
            "the data that the list was made for"
        )
    return np.array(indices, np.int64)


def _last_two(name: str) -> str:
    """Return folder and file name without extension; a file name alone matches no such pair."""
    parts = PurePosixPath(name).parts
    return "/".join((*parts[-2:-1], _stem(name)))


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def source_names(data: Dataset) -> Iterator[str]:
    """Yield each sample's path in the folder or archive that the data was made from, in the data's order."""
    if not isinstance(data, Beton):
        yield from (data.name(i) for i in range(data.num_samples))
        return
    for shard in data.shards:
        sidecar = read_sidecar(shard.path)
        if sidecar is None or not sidecar.packed_paths:
            raise ValueError(
                f"{shard.path} does not know its images' names, which are in the JSON beside it "
                f"({shard.path.name}.json): copy that too, or let the list give positions in the data"
            )
        yield from sidecar.source_paths()


def write_label_list(path: Path, indices: np.ndarray) -> Path:
    """Write one index per line, in the format of `read_label_list`, and return `path`."""
    write_atomically(path, "".join(f"{index}\n" for index in indices.tolist()).encode())
    return path


@dataclass(kw_only=True)
class FewLabels(Classify):
    """A classification task that repeats the first images of each class; an epoch keeps its number of steps.

    RotNet's semi-supervised experiments on CIFAR-10, which SSL++ follows, do the same: an epoch of 50,000
    images passes many times over the first K of each class. They shuffle the whole epoch; here each pass is
    shuffled (`repeated_order`).
    """

    has_own_order = True

    labels_per_class: int
    seed: int
    chosen: np.ndarray = field(init=False)  # the images' indices in the data set, int64 [n]
    num_samples: int = field(init=False)

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        super().check_data(data, batch_size)
        self.num_samples = data.num_samples
        self.chosen = first_of_each_class(
            data.labels(), data.num_classes, self.labels_per_class, data.class_names
        )

    @override
    def learned(self, data: Dataset) -> Subset:
        return Subset(data, self.chosen)

    @override
    def epoch_order(self, epoch: int) -> np.ndarray:
        return repeated_order(self.chosen, self.num_samples, self.seed, epoch)

    @override
    def next_order(self, epoch: int) -> np.ndarray:
        return self.epoch_order(epoch)


def repeated_order(chosen: np.ndarray, num: int, seed: int, epoch: int) -> np.ndarray:
    """Return an order, int64 [num]: passes over `chosen` (indices, int64 [n]), each shuffled anew.

    The last pass may be cut short. The order is a function of (seed, epoch). In any prefix of it, the counts
    of two images differ by at most one.
    """
    num_passes = -(-num // len(chosen))
    keys = sort_keys(seed, epoch, num_passes * len(chosen)).reshape(num_passes, len(chosen))
    order: np.ndarray = chosen[keys.argsort(1, kind="stable").ravel()[:num]]
    return order
