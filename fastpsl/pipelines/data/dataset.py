"""The interface of data sets, and the table of samples that it returns."""

import os
from typing import NamedTuple, Protocol

import numpy as np

MAX_FILE_BYTES = 256 << 20  # larger image files are refused without reading them
MAX_PIXELS = 178_956_970  # Pillow's limit for suspected decompression bombs
MODE_JPEG, MODE_RAW, MODE_FILE = 0, 1, 2
UPRIGHT = 1


class SampleTable(NamedTuple):
    """A table of samples: numpy arrays of one length, which `part` slices alike."""

    indices: np.ndarray  # int64, the sample's index in the data set
    fd: np.ndarray  # int32, an open file; -1 for none
    offset: np.ndarray  # int64, bytes
    num_bytes: np.ndarray  # int64
    height: np.ndarray  # int32, px, of the upright image
    width: np.ndarray  # int32, px, of the upright image
    mode: np.ndarray  # uint8: MODE_JPEG, MODE_RAW (height x width x 3 bytes) or MODE_FILE (PNG, WebP, ...)
    label: np.ndarray  # int64, -1 for none
    orientation: np.ndarray  # uint8, EXIF's 1 to 8; betons are upright
    path: np.ndarray  # object: str, the path of the sample's own file; "" where `fd` is used

    @classmethod
    def empty(cls, indices: np.ndarray) -> "SampleTable":
        """Return a table of upright samples that are read from `fd`; the other columns are uninitialised."""
        num = len(indices)
        return cls(
            indices=np.asarray(indices, np.int64),
            fd=np.empty(num, np.int32),
            offset=np.empty(num, np.int64),
            num_bytes=np.empty(num, np.int64),
            height=np.empty(num, np.int32),
            width=np.empty(num, np.int32),
            mode=np.empty(num, np.uint8),
            label=np.empty(num, np.int64),
            orientation=np.full(num, UPRIGHT, np.uint8),
            path=np.full(num, "", object),
        )

    def part(self, which: "slice | np.ndarray") -> "SampleTable":
        return SampleTable(*(column[which] for column in self))


def read_bytes(rows: SampleTable, i: int) -> bytes:
    """Return a sample's bytes, which may be too few.

    They are empty where the file cannot be read or is larger than MAX_FILE_BYTES.
    """
    try:
        if rows.path[i]:
            with open(rows.path[i], "rb") as file:
                num_bytes = os.fstat(file.fileno()).st_size
                return file.read(num_bytes) if num_bytes <= MAX_FILE_BYTES else b""
        return os.pread(int(rows.fd[i]), int(rows.num_bytes[i]), int(rows.offset[i]))
    except OSError:
        return b""


class Dataset(Protocol):
    """A data set as the Loader needs it: betons, folders and synthetic data."""

    kind: str  # "beton", "folder" or "synthetic"
    num_samples: int
    num_classes: int
    class_names: list[str] | None
    split: str  # as its source calls it, such as train; test+train for several; "" where it is not known

    def image_sizes(self) -> tuple[int, int, int, int]:
        """Return (min height, min width, max height, max width) over all samples, in px."""
        ...

    def rows(self, indices: np.ndarray) -> SampleTable:
        """Return the table of the samples `indices`, int64 [B] in [0, num_samples).

        Raises IndexError for an index out of range. Of a beton, raises ValueError where a file has changed
        since it was opened; a changed file of a folder is a bad sample for the decoder.
        """
        ...

    def labels(self) -> np.ndarray:
        """Return all labels, int32 [num_samples]; -1 for none."""
        ...

    def name(self, index: int) -> str:
        """Return a sample in words, for messages."""
        ...

    def digest(self) -> str:
        """Return a text that is equal for equal data sets."""
        ...

    def close(self) -> None: ...


def require_labels(data: Dataset, what: str) -> None:
    """Raise ValueError unless every sample has a label; the message says that `what` needs them."""
    num_without = int((data.labels() < 0).sum())
    if num_without:
        raise ValueError(
            f"{what} needs labels, and {num_without:,} of {data.num_samples:,} samples have none "
            f"(the first: {data.name(int((data.labels() < 0).argmax()))}); "
            "write the data from a folder per class, or choose what learns without labels"
        )


def require_same_classes(train: Dataset, val: Dataset) -> None:
    """Check that both data sets have the same classes under the same numbers.

    Raises:
        ValueError: The held-out data has other classes than the training data, or numbers them differently.
    """
    if train.class_names and val.class_names:
        if train.class_names != val.class_names:
            unknown = [name for name in val.class_names if name not in train.class_names]
            missing = [name for name in train.class_names if name not in val.class_names]
            difference = "their order differs"
            if unknown or missing:
                difference = (
                    f"{unknown[0]!r} is not in the training data" if unknown else f"{missing[0]!r} is missing"
                )
            raise ValueError(
                f"held-out data has {len(val.class_names):,} classes, "
                f"training data {len(train.class_names):,}, and {difference}: "
                f"write both from folders of the same classes"
            )
    elif val.num_classes > train.num_classes or int(val.labels().max()) > int(train.labels().max()):
        raise ValueError(
            f"held-out data has labels up to {int(val.labels().max())}, "
            f"training data up to {int(train.labels().max())}: write both from the same classes"
        )
