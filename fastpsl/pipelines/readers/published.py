"""CIFAR-10, CIFAR-100 and STL-10 as their authors publish them: as an archive, or the folder in it.

Everything is checked against published MD5 sums. CIFAR-100 has its fine labels. STL-10's labels
count from 0 here, and its unlabelled part has -1. Images come in the order of torchvision's datasets.

Sums of archives are from the data sets' pages and torchvision's datasets, those of their files from
torchvision's datasets. The sums of CIFAR-10's .bin files equal those computed from its images and labels in
that layout. For CIFAR-100's .bin files only third parties publish sums, so unpacked ones are checked for
their length alone.
"""

import contextlib
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import IO

import numpy as np

from fastpsl.files.digest import md5
from fastpsl.files.system_errors import raise_of_the_system
from fastpsl.files.untrusted import load_plain
from fastpsl.pipelines.interface.source import Counted, Picks, Sample, changed

PAGES = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "stl10": "https://cs.stanford.edu/~acoates/stl10/",
}
MD5 = {
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-10-batches-bin/data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "cifar-10-batches-bin/data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "cifar-10-batches-bin/data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "cifar-10-batches-bin/data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "cifar-10-batches-bin/data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "cifar-10-batches-bin/test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
    "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
    "stl10_binary.tar.gz": "91f7769df0f17e558f3565bffb0c7dfb",
    "stl10_binary/train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
    "stl10_binary/train_y.bin": "5a34089d4802c674881badbb80307741",
    "stl10_binary/unlabeled_X.bin": "5242ba1fed5e4be9e1e742405eb56ca4",
    "stl10_binary/test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
    "stl10_binary/test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
}


@dataclass(frozen=True)
class Edition:
    """One way in which a data set is published."""

    archive: str
    folder: str
    splits: dict[str, tuple[str, ...]]  # files of images per split
    names_file: str
    labels_in: str  # "pickle", "row" (the last byte before an image) or "file" (train_y.bin for train_X.bin)
    size_px: int = 32
    row_labels: int = 0  # bytes of labels before each image

    @property
    def row_bytes(self) -> int:
        return self.row_labels + 3 * self.size_px**2

    def label_files(self, files: Sequence[str]) -> list[str]:
        """Return the files that hold only labels of these files' images."""
        labelled = [file for file in files if not file.startswith("unlabeled")]
        return [file.replace("_X", "_y") for file in labelled] if self.labels_in == "file" else []

    def needed(self, split: str) -> list[str]:
        """Return every file that a split needs."""
        files = self.splits[split]
        return [*files, *self.label_files(files), self.names_file]


_PY, _BIN = tuple(f"data_batch_{i}" for i in range(1, 6)), tuple(f"data_batch_{i}.bin" for i in range(1, 6))
EDITIONS = {
    "cifar10": (
        Edition(
            "cifar-10-python.tar.gz", "cifar-10-batches-py", {"train": _PY, "test": ("test_batch",)},
            "batches.meta", "pickle",
        ),
        Edition(
            "cifar-10-binary.tar.gz", "cifar-10-batches-bin", {"train": _BIN, "test": ("test_batch.bin",)},
            "batches.meta.txt", "row", row_labels=1,
        ),
    ),
    "cifar100": (
        Edition(
            "cifar-100-python.tar.gz", "cifar-100-python", {"train": ("train",), "test": ("test",)},
            "meta", "pickle",
        ),
        Edition(
            "cifar-100-binary.tar.gz", "cifar-100-binary", {"train": ("train.bin",), "test": ("test.bin",)},
            "fine_label_names.txt", "row", row_labels=2,
        ),
    ),
    "stl10": (
        Edition(
            "stl10_binary.tar.gz", "stl10_binary",
            {
                "train": ("train_X.bin",), "test": ("test_X.bin",), "unlabeled": ("unlabeled_X.bin",),
                "train+unlabeled": ("train_X.bin", "unlabeled_X.bin"),
            },
            "class_names.txt", "file", size_px=96,
        ),
    ),
}  # fmt: skip


_BLOCK_BYTES = 1 << 22


@dataclass
class Published(Counted):
    """One split of a published data set, with its images counted."""

    where: Path  # the archive, or the folder with its files
    edition: Edition
    files: Sequence[str]  # files of images
    labels: dict[str, np.ndarray]  # for files with labels in a file of their own

    def samples(self, skip: int = 0) -> Iterator[Sample]:
        """Yield this shard's images in order, uint8 [S, S, 3] with S = 32 or 96."""
        with _errors(self.where):
            yield from self._samples(skip)

    def picks(self, num: int, random: Random) -> Picks:
        """Choose the first images, because all have one size."""
        return Picks("the first", False, self.samples())

    def _samples(self, skip: int) -> Iterator[Sample]:
        for i, positions in self.parts(skip):
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
    """Check the files of a published data set and count its images, by default those of train.

    `src` is the archive, its folder, or a folder with either. `shard` (i, n) keeps the i-th of n runs of
    neighbours. `on_progress` is called with (MB done, MB in all) while checksums are computed.
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
        raise_of_the_system(where, error)
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
        digest = md5(usedforsecurity=False)
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
            labels[file.replace("_y", "_X")] = np.frombuffer(stream.read(), np.uint8).astype(np.int64) - 1
    for file, file_labels in labels.items():
        if len(file_labels) != counts[file]:
            raise ValueError(
                f"{where}: {file} has {counts[file]:,} images and {len(file_labels):,} labels; "
                f"download it again"
            )
    return Published(
        where, edition, files, labels, counts=[counts[file] for file in files], class_names=names, mode="raw",
        notes=notes, shard=shard,
    )  # fmt: skip


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
    with _as_published(where, name):
        record = load_plain(stream.read())
        planes = record[b"data"].reshape(-1, 3, 32, 32)
        labels = np.array(record.get(b"fine_labels", record.get(b"labels")), np.int64)
        if labels.shape != planes.shape[:1]:
            raise ValueError(f"{len(planes)} images and {labels.size} labels")
        return planes, labels


def _class_names(where: Path, edition: Edition, stream: IO[bytes]) -> list[str]:
    data = stream.read()
    if edition.labels_in != "pickle":
        return [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    with _as_published(where, edition.names_file):
        record = load_plain(data)
        key = b"fine_label_names" if b"fine_label_names" in record else b"label_names"
        return [name.decode() for name in record[key]]


@contextlib.contextmanager
def _as_published(where: Path, name: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, AttributeError, TypeError, OverflowError, ValueError) as error:
        raise ValueError(f"{where}: {name} is not as published ({error}); download it again") from None
