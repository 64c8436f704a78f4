"""Tars of images, read as streams and never unpacked: WebDataset shards, and tars of class folders.

A tar is a WebDataset if .cls or .json files share the key of images. The key is everything before the first
dot of a base name, and neighbours with one key are one sample. Its image is the file with an image's ending
(a.jpg before a.mask.png). Its label is the number or name in .cls, else "label" or "cls" in .json, else -1.

Any other tar is read as if it were unpacked. The class is the top folder, below the folders that all images
share; the label is -1 without folders. A tar within a tar is a folder (ImageNet's n01440764.tar). What is
hidden or left by other programs is left out.

The order is that of the tars' names and, in each, of its members. Tars are read twice, to count and to yield.
The first time, uncompressed ones are only skimmed.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from fastpsl.console.words import number_of
from fastpsl.pipelines.data.dataset import BadImage
from fastpsl.pipelines.sources.files import SourceFile, size_of
from fastpsl.pipelines.sources.labels import Census
from fastpsl.pipelines.sources.layout import PARTS, tar_parts_error
from fastpsl.pipelines.sources.source import EXTENSIONS, Picks, Sample, changed, parts_of, shard_range
from fastpsl.pipelines.sources.tally import LEFTOVERS, OTHERS, SAME_KEY, Tally
from fastpsl.pipelines.sources.tar_samples import Folders, Group, Grouper, label_in, label_of
from fastpsl.pipelines.sources.tar_stream import Damage, is_left_over, open_tar, tar_members

_PICKED = 16  # images of each tar, for an estimate


@dataclass
class TarSource:
    """A list of tars of images, counted; see the module's docstring."""

    paths: list[SourceFile]
    counts: list[int]  # samples in each tar, damages included
    is_web: bool
    folders: Folders
    class_names: list[str] | None
    notes: list[str]
    warnings: list[str]
    left_out: Tally
    shard: tuple[int, int] = (0, 1)
    mode: str = "jpg"

    @property
    def num_total(self) -> int:
        return sum(self.counts)

    @property
    def num_samples(self) -> int:
        return len(shard_range(self.num_total, self.shard))

    def samples(self, skip: int = 0) -> Iterator[Sample]:
        """Yield this shard's samples in order; damaged ones carry the reason.

        Raises:
            ValueError: A tar has changed since it was counted.
        """
        return self._samples_of(parts_of(shard_range(self.num_total, self.shard)[skip:], self.counts))

    def picks(self, num: int, random: Random) -> Picks:
        """Choose the first images, of some tars at random where there are several."""
        parts = list(parts_of(shard_range(self.num_total, self.shard), self.counts))
        random.shuffle(parts)
        each = max(_PICKED, -(-num // len(parts)))
        how = (
            "the first"
            if len(parts) == 1
            else f"the first of {min(len(parts), -(-num // each))} tars picked at random"
        )
        return Picks(how, False, self._samples_of((i, positions[:each]) for i, positions in parts))

    def _samples_of(self, parts: Iterable[tuple[int, range]]) -> Iterator[Sample]:
        labels = {name: label for label, name in enumerate(self.class_names or ())}
        for i, positions in parts:
            yield from self._samples_of_tar(self.paths[i], self.counts[i], positions, labels)

    def _samples_of_tar(
        self, path: SourceFile, count: int, positions: range, labels: dict[str, int]
    ) -> Iterator[Sample]:
        position = 0
        for item in _groups(path, Grouper(self.is_web, positions)):
            if isinstance(item, Damage):
                sample = Sample(item.name, BadImage(item.reason), -1)
            elif item.image_name:
                sample = self._sample(path, item, labels)
            else:
                continue
            if position in positions:
                yield sample
            position += 1
            if position == positions.stop < count:
                return  # the rest belongs to other shards
        if position != count:
            raise changed(path, count, position)

    def _sample(self, path: SourceFile, group: Group, labels: dict[str, int]) -> Sample:
        name = f"{path.name}/{group.image_name}"
        if isinstance(group.image, BadImage):
            return Sample(name, group.image, -1)
        if labels and not self.is_web:
            label = labels.get(self.folders.class_of(group.image_name))
            if label is None:
                raise ValueError(
                    f"{path}: has changed since it was counted; write again when nothing changes it"
                )
            return Sample(name, group.image, label)
        try:
            return Sample(name, group.image, label_of(group, labels) if self.is_web else -1)
        except BadImage as error:
            return Sample(name, error, -1)


def _groups(path: SourceFile, grouper: Grouper) -> Iterator[Group | Damage]:
    """Yield the samples that `grouper` makes of a tar's members."""
    with open_tar(path) as (stream, _):
        for item in tar_members(stream, path.name):
            if isinstance(item, Damage) or not is_left_over(item.name):
                yield from grouper.add(item)
        yield from grouper.end()


@dataclass
class _Count:
    """The result of the first pass."""

    folders: Folders = field(default_factory=Folders)
    num_by_key: list[int] = field(default_factory=list)  # samples of each tar as WebDataset
    num_one_by_one: list[int] = field(default_factory=list)  # samples of each tar with every image alone
    num_labelled: int = 0
    num_unlabelled: int = 0
    census: Census = field(default_factory=Census)
    left_out: Tally = field(default_factory=Tally)
    first_damage: str = ""

    def add(self, path: SourceFile, on_bytes: Callable[[int], None]) -> None:
        by_key, one_by_one = Grouper(True), Grouper(False)
        with open_tar(path) as (stream, tell):
            for item in tar_members(stream, path.name):
                if isinstance(item, Damage) and item.is_no_tar and item.name == path.name:
                    raise ValueError(
                        f"{path}: is no tar, or damaged at its beginning ({item.reason}); "
                        f"copy it again, or give a tar of images"
                    )
                if isinstance(item, Damage):
                    self.first_damage = self.first_damage or f"{item.name} {item.reason}"
                elif is_left_over(item.name):
                    self.left_out.add(LEFTOVERS, item.name)
                    continue
                self._add(by_key.add(item), one_by_one.add(item))
                on_bytes(tell())
            self._add(by_key.end(), one_by_one.end())
        self.num_by_key.append(by_key.position)
        self.num_one_by_one.append(one_by_one.position)

    def _add(self, samples: list[Group | Damage], images: list[Group | Damage]) -> None:
        for sample in samples:
            if isinstance(sample, Group) and sample.image_name:
                self.num_labelled += bool(sample.label_name)
                self.num_unlabelled += not sample.label_name
                self.left_out.counts[SAME_KEY] += sample.num_further
                with contextlib.suppress(BadImage):  # listed when it is read
                    self.census.add(label_in(sample))
        for image in images:
            if isinstance(image, Group) and image.image_name:
                self.folders.add(image.image_name)
            elif isinstance(image, Group):
                self.left_out.add(OTHERS, image.key)


def tar_source(
    paths: Sequence[SourceFile],
    shard: tuple[int, int] = (0, 1),
    on_progress: Callable[[int, int], None] | None = None,
    are_classes: bool = False,
) -> TarSource:
    """Count the images in tars.

    Args:
        paths: The tars.
        shard: (i, n) keeps the i-th of n runs of neighbours.
        on_progress: Called with (MB done, MB in all).
        are_classes: Whether folders are classes even where they are called train or test.

    Raises:
        ValueError: A tar cannot be read or is none, they hold no image, or their folders are no classes.
    """
    paths = sorted(paths, key=str)
    try:
        sizes = [size_of(path) for path in paths]
    except OSError as error:
        raise ValueError(
            f"{error.filename}: cannot be read ({error.strerror}); give tars that can be read"
        ) from None
    count, starts = _Count(), [sum(sizes[:i]) for i in range(len(sizes))]
    for path, start in zip(paths, starts, strict=True):

        def on_bytes(position: int, start: int = start) -> None:
            if on_progress:
                on_progress((start + position) // 1_000_000, sum(sizes) // 1_000_000)

        count.add(path, on_bytes)
    name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    folders = count.folders
    if folders.shared is None and count.first_damage:
        raise ValueError(
            f"{name}: damaged before its first image ({' '.join(count.first_damage.split())}); copy it again"
        )
    if folders.shared is None:
        raise ValueError(f"{name}: no images inside ({', '.join(EXTENSIONS)}); give tars of images")
    if count.num_labelled:
        names = count.census.class_names
        classes = f": {number_of(len(names), 'class', 'classes')}" if names else ""
        notes = [f"taken as WebDataset samples, with labels from .cls and .json{classes}"]
        without = f"{count.num_unlabelled:,} samples have no .cls and no .json beside them: label -1"
        warnings = [without] if count.num_unlabelled else []
        del count.left_out.counts[OTHERS]  # further files of samples
        return TarSource(
            paths, count.num_by_key, True, folders, names, notes, warnings, count.left_out, shard
        )
    del count.left_out.counts[SAME_KEY]
    if folders.below and folders.beside:
        raise ValueError(
            f"{name}: {folders.beside} lies beside the class folders {min(folders.below)}, ...; "
            "make a tar either of images alone or of one folder per class"
        )
    if not are_classes and folders.below and all(folder.lower() in PARTS for folder in folders.below):
        raise tar_parts_error(name, sorted(folders.below))
    where = f" below {'/'.join(folders.shared)}" if folders.shared else ""
    class_names = sorted(folders.below) or None
    notes = [f"{len(class_names):,} class folders{where}" if class_names else f"images without labels{where}"]
    return TarSource(
        paths, count.num_one_by_one, False, folders, class_names, notes, [], count.left_out, shard
    )
