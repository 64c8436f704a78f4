"""The interface of data sets, and the table of samples that it returns."""

import errno
import os
import stat
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from typing_extensions import override

from fastpsl.console.words import number_of, pasted
from fastpsl.pipelines.interface.reading import PLAIN, Reading

MAX_FILE_BYTES = 256 << 20  # larger image files are refused without reading them
MAX_PIXELS = 1 << 29  # so the bytes of an image as RGB, 1.6 GB, are a number of 32 bits
MODE_JPEG, MODE_RAW, MODE_FILE, MODE_COEFFICIENTS = 0, 1, 2, 3
UPRIGHT = 1


class BadImage(Exception):
    """An error of one image that cannot be used; its message is the reason in the list of bad images."""


class SampleTable(NamedTuple):
    """A table of samples: numpy arrays of one length, which `part` slices alike, and how they are read."""

    indices: np.ndarray  # int64, the sample's index in the data set
    fd: np.ndarray  # int32, an open file; -1 for none
    offset: np.ndarray  # int64, bytes
    num_bytes: np.ndarray  # int64
    height: np.ndarray  # int32, px, of the upright image
    width: np.ndarray  # int32, px, of the upright image
    # uint8: MODE_JPEG, MODE_RAW (height x width x 3 bytes), MODE_FILE (PNG, WebP, ...), MODE_COEFFICIENTS
    mode: np.ndarray
    label: np.ndarray  # int64, -1 for none
    orientation: np.ndarray  # uint8, EXIF's 1 to 8; betons are upright
    path: np.ndarray  # object: str, the path of the sample's own file; "" where `fd` is used
    reading: Reading = PLAIN  # how all of its files are read

    @classmethod
    def empty(cls, indices: np.ndarray) -> "SampleTable":
        """Return a table of upright samples that are read from `fd`; the other columns are uninitialised."""
        num = len(indices)
        columns: list[np.ndarray]
        columns = [np.empty(num, kind) for kind in ("i4", "i8", "i8", "i4", "i4", "u1", "i8")]
        columns += [np.full(num, UPRIGHT, np.uint8), np.full(num, "", object)]
        return cls._make([np.asarray(indices, np.int64), *columns, PLAIN])

    def part(self, which: "slice | np.ndarray") -> "SampleTable":
        return SampleTable._make([*(column[which] for column in self[:-1]), self.reading])


# Errors of one file, which the next file need not have. samples.c has the same list.
_OF_ONE_FILE = frozenset(
    (
        errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO,
        errno.EIO, errno.ESTALE,
    )
)  # fmt: skip


def is_of_one_file(error: OSError) -> bool:
    """Return whether an error is of one file, as a missing permission is, and too many open files are not.

    Such a sample is bad, and the others are read. Its file need not be damaged: `is_of_the_system`.
    """
    return error.errno in _OF_ONE_FILE


def open_file(path: str | Path) -> int:
    """Open a sample's own file; raise OSError for a pipe, which would wait for a writer."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ENXIO, "no regular file", str(path))
    return fd


def written_when(status: os.stat_result) -> str:
    """Return a file's size and times; no program can set the last time, and some restore the first one."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def read_bytes(rows: SampleTable, i: int) -> bytes:
    """Return a sample's bytes, which may be too few.

    They are empty where a file of its own cannot be read or is larger than MAX_FILE_BYTES. Raises OSError
    where more than this file cannot be read.
    """
    try:
        if rows.path[i]:
            with open(open_file(rows.path[i]), "rb") as file:
                num_bytes = os.fstat(file.fileno()).st_size
                return file.read(num_bytes) if num_bytes <= MAX_FILE_BYTES else b""
        return os.pread(int(rows.fd[i]), int(rows.num_bytes[i]), int(rows.offset[i]))
    except OSError as error:
        if not rows.path[i] or not is_of_one_file(error):
            raise
        return b""


def spread_indices(num_samples: int, at_most: int) -> np.ndarray:
    """Return indices spread over a data set, int64, ascending: all of them if there are few."""
    return np.linspace(0, num_samples - 1, min(at_most, num_samples)).astype(np.int64)


def checked(indices: np.ndarray, num_samples: int) -> np.ndarray:
    """Return the indices as int64; raise IndexError where one lies outside of the data set."""
    indices = np.asarray(indices, np.int64)
    if len(indices) and not (0 <= indices.min() and indices.max() < num_samples):
        raise IndexError(
            f"samples {indices.min()} to {indices.max()} were asked for; the data has 0 to {num_samples - 1}"
        )
    return indices


class Dataset(Protocol):
    """A data set as the Loader needs it: dataset files, folders and synthetic data."""

    kind: str  # "beton", "folder" or "synthetic"
    num_samples: int
    num_classes: int
    class_names: list[str] | None
    split: str  # as its source calls it, such as train; test+train for several; "" where it is not known
    reading: Reading  # the range and the bands that its pixels are of

    def image_sizes(self) -> tuple[int, int, int, int]:
        """Return (min height, min width, max height, max width) over all samples, in px."""
        ...

    def rows(self, indices: np.ndarray) -> SampleTable:
        """Return the table of the samples `indices`, int64 [B] in [0, num_samples).

        Raises IndexError for an index out of range. Of a dataset file, raises ValueError where it has changed
        since it was opened. A changed file of a folder is a bad sample for the decoder.
        """
        ...

    def wait(self, indices: np.ndarray) -> None:
        """Wait until the bytes of samples are on this machine; raise ValueError where they cannot come."""
        ...

    def labels(self) -> np.ndarray:
        """Return all labels, int32 [num_samples]; -1 for none."""
        ...

    def name(self, index: int) -> str:
        """Return a sample in words, for messages."""
        ...

    def names(self) -> Iterator[str]:
        """Yield each sample's name within the data set, or its number where it has none.

        A folder that moves keeps its names, and so does a dataset file that is written from it.
        """
        ...

    def digest(self) -> str:
        """Return a text by which `identity.same_data` tells whether data sets are the same."""
        ...

    def stamp(self) -> str:
        """Return a text that changes when files are written to without a change of `digest`; "" if none can
        be.

        It serves for caches on this machine, because a copy of the data has another stamp.
        """
        ...

    def close(self) -> None: ...


def size_in_words(data: Dataset) -> str:
    """Return the numbers of images and classes, such as "3,781 images in 10 classes"."""
    images, num_classes = number_of(data.num_samples, "image"), data.num_classes
    return f"{images} in {number_of(num_classes, 'class', 'classes')}" if num_classes else images


Opened = TypeVar("Opened", bound="Local")


class Local:
    """The common part of data sets whose files lie on this machine, none of them open."""

    split = ""
    num_samples: int
    reading = PLAIN

    def names(self) -> Iterator[str]:
        """Yield the numbers of samples that have no names."""
        yield from map(str, range(self.num_samples))

    def stamp(self) -> str:
        """Return "", since nothing can be written to."""
        return ""

    def wait(self, indices: np.ndarray) -> None:
        """Do nothing, since all is on this machine."""

    def close(self) -> None:
        """Do nothing, because no file stays open."""

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({size_in_words(self)})"  # type: ignore[arg-type]  # its subclasses are

    def __enter__(self: Opened) -> Opened:  # noqa: PYI019  (typing.Self needs Python 3.11)
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def all_labelled(data: Dataset) -> bool:
    """Return whether every sample has a label."""
    return bool((data.labels() >= 0).all())


def require_labels(data: Dataset, what: str) -> None:
    """Raise ValueError unless every sample has a label; the message says that `what` needs them."""
    num_without = int((data.labels() < 0).sum())
    if num_without:
        raise ValueError(
            f"{what} needs labels, and {num_without:,} of {data.num_samples:,} samples have none "
            f"(the first: {data.name(int((data.labels() < 0).argmax()))}); "
            "write the data from a folder per class, or choose what learns without labels"
        )


class HasClasses(Protocol):
    """The part of a data set that says which classes it has."""

    @property
    def class_names(self) -> list[str] | None: ...
    @property
    def num_classes(self) -> int: ...


def require_same_classes(
    train: HasClasses,
    val: HasClasses,
    train_name: str | Path | None = None,
    val_name: str | Path | None = None,
) -> None:
    """Check that both data sets have the same classes under the same numbers.

    Where one has no class names, only the numbers of classes are compared. The validation data may then have
    fewer.
    """
    names, others = train.class_names, val.class_names
    counts = f"{val.num_classes:,} classes, {train_name or 'the training data'} {train.num_classes:,}"
    if names and others:
        if names == others:
            return
        pairs = list(zip_longest(others, names))
        at = next(i for i, (other, name) in enumerate(pairs) if other != name)
        here, there = ("none" if name is None else repr(name) for name in pairs[at])
        difference = f"{counts}; class {at} is {here}, in the training data {there}"
    elif val.num_classes > train.num_classes:
        difference = counts
    else:
        return
    source = pasted(train_name) if train_name else "TRAIN"
    raise ValueError(
        f"{val_name or 'the validation data'}: other classes than in training ({difference}); give "
        f"validation images of the same ones, numbered by `fastpsl data write SRC OUT --classes {source}`"
    )
