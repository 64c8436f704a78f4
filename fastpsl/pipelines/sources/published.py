"""CIFAR-10, CIFAR-100 and STL-10 as their authors publish them: as an archive, or the folder in it.

Everything is checked against published MD5 sums (editions.py). CIFAR-100 has its fine labels. STL-10's labels
count from 0 here, and its unlabelled part has -1. Images come in the order of torchvision's datasets.
"""

import contextlib
import hashlib
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import IO

import numpy as np

from fastpsl.pipelines.sources.editions import EDITIONS, MD5, PAGES, Edition
from fastpsl.pipelines.sources.plain_pickle import load_plain
from fastpsl.pipelines.sources.source import Picks, Sample, changed, parts_of, shard_range
from fastpsl.pipelines.sources.tally import Tally

_BLOCK_BYTES = 1 << 22


@dataclass
class Published:
    """One split of a published data set, with its images counted."""

    where: Path  # the archive, or the folder with its files
    edition: Edition
    files: Sequence[str]  # files of images
    counts: list[int]  # images in each file
    labels: dict[str, np.ndarray]  # for files with labels in a file of their own
    class_names: list[str] | None
    notes: list[str]
    shard: tuple[int, int] = (0, 1)
    mode: str = "raw"
    warnings: list[str] = field(default_factory=list)
    left_out: Tally = field(default_factory=Tally)

    @property
    def num_total(self) -> int:
        return sum(self.counts)

    @property
    def num_samples(self) -> int:
        return len(shard_range(self.num_total, self.shard))

    def samples(self, skip: int = 0) -> Iterator[Sample]:
        """Yield this shard's images in order, uint8 [S, S, 3] with S = 32 or 96.

        Raises:
            ValueError: The files have changed since they were counted.
        """
        with _errors(self.where):
            yield from self._samples(skip)

    def picks(self, num: int, random: Random) -> Picks:
        """Choose the first images, because all have one size."""
        return Picks("the first", False, self.samples())

    def _samples(self, skip: int) -> Iterator[Sample]:
        for i, positions in parts_of(shard_range(self.num_total, self.shard)[skip:], self.counts):
            name, position = self.files[i], 0
            for planes, labels in self._batches(name):
                for image_planes, label in zip(planes, labels, strict=True):
                    if position in positions:
                        image = np.ascontiguousarray(image_planes.transpose(1, 2, 0))
                        yield Sample(f"{name}[{position}]", image, self._checked(name, int(label)))
                    position += 1
                if position >= positions.stop:
                    break
            if position < positions.stop:
                raise changed(self.where, self.counts[i], position)

    def _batches(self, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield images, uint8 [n, 3, S, S], and labels [n] of a file, some at a time."""
        edition, position = self.edition, 0
        for _, stream, _ in _streams(self.where, edition, [name]):
            if edition.labels_in == "pickle":
                yield _unpickle(self.where, name, stream)
                continue
            while data := stream.read(_BLOCK_BYTES // edition.row_bytes * edition.row_bytes):
                rows = np.frombuffer(data, np.uint8).reshape(-1, edition.row_bytes)
                planes = rows[:, edition.row_labels :].reshape(-1, 3, edition.size_px, edition.size_px)
                if edition.labels_in == "row":
                    yield planes, rows[:, edition.row_labels - 1]
                else:  # STL-10 stores images column by column
                    labels = self.labels.get(name)
                    batch_labels = (
                        np.full(len(rows), -1) if labels is None else labels[position : position + len(rows)]
                    )
                    yield planes.transpose(0, 1, 3, 2), batch_labels
                position += len(rows)

    def _checked(self, name: str, label: int) -> int:
        if self.class_names and not -1 <= label < len(self.class_names):
            raise ValueError(
                f"{self.where}: {name} has label {label} of {len(self.class_names)} classes; "
                f"download it again"
            )
        return label


def published(
    src: Path,
    name: str,
    split: str | None = None,
    shard: tuple[int, int] = (0, 1),
    on_progress: Callable[[int, int], None] | None = None,
) -> Published:
    """Check the files of a published data set and count its images.

    Args:
        src: The archive, its folder, or a folder with either.
        name: cifar10, cifar100 or stl10.
        split: The split; None for train.
        shard: (i, n) keeps the i-th of n runs of neighbours.
        on_progress: Called with (MB done, MB in all) while checksums are computed.

    Raises:
        ValueError: Files are missing or are not the published ones.
    """
    splits = EDITIONS[name][0].splits
    notes = [] if split else [f"--split train of {', '.join(splits)}"]
    split = split or "train"
    if split not in splits:
        raise ValueError(f"--split {split}: {name} has no such split; give one of {', '.join(splits)}")
    with _errors(src):
        edition, where = _find(src, name, split, on_progress)
        return _count(edition, where, edition.splits[split], notes, shard)


def published_name(src: Path) -> str | None:
    """Return the name of the data set that `src` is, by its file names; None for others."""
    for name, editions in EDITIONS.items():
        for edition in editions:
            if src.name == edition.archive and src.is_file():
                return name
            if any(all((src / file).is_file() for file in edition.needed(split)) for split in edition.splits):
                return name
    return None


@contextlib.contextmanager
def _errors(where: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{where}: cannot be read ({error}); download it again") from None


def _find(
    src: Path, name: str, split: str, on_progress: Callable[[int, int], None] | None
) -> tuple[Edition, Path]:
    editions, remedy = EDITIONS[name], f"download it again from {PAGES[name]}"
    if src.is_file():
        md5 = _md5([src], on_progress)[0]
        for edition in editions:
            if md5 == MD5[edition.archive]:
                return edition, src
        names = " or ".join(edition.archive for edition in editions)
        raise ValueError(f"{src}: is not {names} as published (MD5 {md5}); {remedy}")
    for edition in editions:
        for folder in (src, src / edition.folder):
            files = [folder / file for file in edition.needed(split)]
            if all(file.is_file() for file in files):
                known_files = [file for file in files if f"{edition.folder}/{file.name}" in MD5]
                for file, md5 in zip(known_files, _md5(known_files, on_progress), strict=True):
                    if md5 != MD5[f"{edition.folder}/{file.name}"]:
                        raise ValueError(f"{file}: is not the published file (MD5 {md5}); {remedy}")
                return edition, folder
    for edition in editions:
        if (src / edition.archive).is_file():
            return _find(src / edition.archive, name, split, on_progress)
    names = ", ".join(f"{edition.archive} or its {edition.folder}/" for edition in editions)
    raise ValueError(
        f"{src}: no {name} there ({names}, for {split}: {', '.join(editions[0].needed(split))}); {remedy}"
    )


def _md5(files: Sequence[Path], on_progress: Callable[[int, int], None] | None) -> list[str]:
    total, num_bytes, digests = sum(file.stat().st_size for file in files), 0, []
    for file in files:
        digest = hashlib.md5(usedforsecurity=False)
        with open(file, "rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
                num_bytes += len(block)
                if on_progress:
                    on_progress(num_bytes // 1_000_000, total // 1_000_000)
        digests.append(digest.hexdigest())
    return digests


def _count(
    edition: Edition, where: Path, files: Sequence[str], notes: list[str], shard: tuple[int, int]
) -> Published:
    counts, labels, names = dict[str, int](), dict[str, np.ndarray](), list[str]()
    needed = [*files, *edition.label_files(files), edition.names_file]
    for file, stream, num_bytes in _streams(where, edition, needed):
        if file == edition.names_file:
            names = _class_names(where, edition, stream)
        elif file in files and edition.labels_in == "pickle":
            counts[file] = len(_unpickle(where, file, stream)[1])
        elif file in files:
            counts[file] = num_bytes // edition.row_bytes
            if num_bytes % edition.row_bytes:
                raise ValueError(
                    f"{where}: {file} has {num_bytes:,} bytes, no multiple of {edition.row_bytes:,}; "
                    f"download it again"
                )
        else:
            labels[edition.images_of(file)] = np.frombuffer(stream.read(), np.uint8).astype(np.int64) - 1
    for file, file_labels in labels.items():
        if len(file_labels) != counts[file]:
            raise ValueError(
                f"{where}: {file} has {counts[file]:,} images and {len(file_labels):,} labels; "
                f"download it again"
            )
    return Published(where, edition, files, [counts[file] for file in files], labels, names, notes, shard)


def _streams(where: Path, edition: Edition, names: Sequence[str]) -> Iterator[tuple[str, IO[bytes], int]]:
    """Yield the wanted files with their lengths, each once, in the order in which they are stored."""
    missing = set(names)
    if where.is_dir():
        for name in names:
            with open(where / name, "rb") as file:
                missing.discard(name)
                yield name, file, (where / name).stat().st_size
        return
    with tarfile.open(where) as tar:
        for member in tar:
            folder, _, name = member.name.removeprefix("./").rpartition("/")
            if folder == edition.folder and name in missing and (stream := tar.extractfile(member)):
                missing.discard(name)
                yield name, stream, member.size
            if not missing:
                return
    raise ValueError(f"{where}: lacks {', '.join(sorted(missing))}; download it again")


def _unpickle(where: Path, name: str, stream: IO[bytes]) -> tuple[np.ndarray, np.ndarray]:
    try:
        record = load_plain(stream.read())
        labels = record.get(b"fine_labels", record.get(b"labels"))
        planes = record[b"data"].reshape(-1, 3, 32, 32)
        labels = np.array(labels, np.int64)
        if labels.shape != planes.shape[:1]:
            raise ValueError(f"{len(planes)} images and {labels.size} labels")
        return planes, labels
    except (KeyError, AttributeError, TypeError, OverflowError, ValueError) as error:
        raise ValueError(f"{where}: {name} is not as published ({error}); download it again") from None


def _class_names(where: Path, edition: Edition, stream: IO[bytes]) -> list[str]:
    data = stream.read()
    if edition.labels_in == "pickle":
        try:
            record = load_plain(data)
            key = b"fine_label_names" if b"fine_label_names" in record else b"label_names"
            return [name.decode() for name in record[key]]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{where}: {edition.names_file} is not as published ({error}); download it again"
            ) from None
    return [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
