"""Some samples of a data set as a data set of their own."""

import copy
import os
from collections.abc import Iterable, Iterator
from typing import Any, final

import numpy as np
from typing_extensions import override

from fastpsl.files.digest import blake2b
from fastpsl.pipelines.interface.dataset import Dataset, Local, SampleTable, checked
from fastpsl.pipelines.interface.identity import identity, parts_of

_CHUNK = 65_536  # rows per read
_SPLIT_KEY = b"fastpsl validation"  # another key would be another split of everybody's data


@final
class Subset(Local):
    """A data set of some samples of another: sample i of the subset is sample indices[i] of `data`.

    Classes are those of `data`, even where the subset has none of their samples. Every decoder that reads
    `data` reads the subset. The quasi-random order does not, because it reads whole pages.

    A subset of a subset is one of the whole: `data` and `indices` are the whole's. `positions` are within
    what was given, int64 [n].

    Args:
        data: The whole data set.
        indices: Integers [n], each at most once.

    Raises:
        ValueError: There are no indices, one is out of range, or one appears twice.
    """

    def __init__(self, data: Dataset, indices: np.ndarray) -> None:
        selection = np.asarray(indices, np.int64)
        if selection.ndim != 1 or not len(selection):
            raise ValueError(f"a subset of {data.num_samples:,} samples without any: give one index or more")
        if selection.min() < 0 or selection.max() >= data.num_samples:
            wrong = selection[(selection < 0) | (selection >= data.num_samples)][0]
            raise ValueError(
                f"sample {wrong} of a subset: the data has samples 0 to {data.num_samples - 1:,}"
            )
        values, counts = np.unique(selection, return_counts=True)
        if counts.max() > 1:
            raise ValueError(f"sample {values[counts > 1][0]} is in the subset twice; give each index once")
        self.data: Dataset = data
        self.indices: np.ndarray = selection
        self.positions: np.ndarray = selection
        if isinstance(data, Subset):
            self.data, self.indices = data.data, data.indices[selection]
        self.kind = data.kind
        self.num_samples, self.num_classes = len(selection), data.num_classes
        self.class_names, self.split, self.reading = data.class_names, data.split, data.reading
        self._sizes: tuple[int, int, int, int] | None = None

    def __getattr__(self, name: str) -> Any:
        """Return an attribute that only some kinds of data have, such as a beton's `is_raw` and `paths`."""
        if name in ("is_raw", "is_packed", "paths"):
            return getattr(self.data, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __copy__(self) -> "Subset":
        """Return a subset that closes a copy of the whole data set."""
        return Subset(copy.copy(self.data), self.indices)

    def image_sizes(self) -> tuple[int, int, int, int]:
        """Return (min height, min width, max height, max width) over these samples, in px."""
        if self._sizes is None:
            low, high = [], []
            for start in range(0, self.num_samples, _CHUNK):
                rows = self.data.rows(self.indices[start : start + _CHUNK])
                sizes = np.stack([rows.height, rows.width])
                low.append(sizes.min(1))
                high.append(sizes.max(1))
            least, most = np.min(low, 0).tolist(), np.max(high, 0).tolist()
            self._sizes = (least[0], least[1], most[0], most[1])
        return self._sizes

    def rows(self, indices: np.ndarray) -> SampleTable:
        """Return where samples lie; the rows' `indices` are positions in the subset."""
        positions = checked(indices, self.num_samples)
        return self.data.rows(self.indices[positions])._replace(indices=positions)

    @override
    def wait(self, indices: np.ndarray) -> None:
        """Wait until the bytes of samples are on this machine."""
        self.data.wait(self.indices[indices])

    def labels(self) -> np.ndarray:
        """Return all labels, int32 [num_samples]; -1 for none."""
        return self.data.labels()[self.indices]

    def name(self, index: int) -> str:
        """Return the sample's name in the whole data set."""
        return self.data.name(int(self.indices[index]))

    @override
    def names(self) -> Iterator[str]:
        """Yield each sample's name within the whole data set."""
        names = list(self.data.names())
        yield from (names[i] for i in self.indices.tolist())

    def digest(self) -> str:
        """Return an identity that is equal for the same samples, in the same order, of the same data."""
        names, contents = parts_of(self.data.digest())
        digest = blake2b(names.encode(), digest_size=16)
        digest.update(self.indices.astype("<i8").tobytes())
        return identity(digest.hexdigest(), contents)

    @override
    def stamp(self) -> str:
        """Return the stamp of the whole data set."""
        return self.data.stamp()

    @override
    def close(self) -> None:
        """Close the whole data set."""
        self.data.close()


def held_back(names: Iterable[str], share: float) -> np.ndarray:
    """Return which samples a split of `share` holds back for validation, bool [n].

    It depends on each name alone, so no sample changes its part when others come or the folder moves.
    """
    hashes = (blake2b(os.fsencode(name), digest_size=8, key=_SPLIT_KEY).digest() for name in names)
    return np.frombuffer(b"".join(hashes), "<u8") < np.uint64(share * 2**64)


def split_by_name(data: Dataset, share: float) -> tuple[Dataset, Dataset | None]:
    """Return the part of a data set to train on and the part that is held back; None for none.

    Each part closes what it reads.
    """
    is_held_back = held_back(data.names(), share)
    if is_held_back.all():
        raise ValueError(
            f"--val {100 * share:g}% of {data.num_samples:,} images holds all of them back: give a smaller "
            "share, or --val none"
        )
    if not is_held_back.any():
        return data, None
    other = copy.copy(data)
    return Subset(data, np.flatnonzero(~is_held_back)), Subset(other, np.flatnonzero(is_held_back))


@final
class Synthetic(Local):
    """A data set of images of one size, without files; a label is index % num_classes."""

    kind = "synthetic"

    def __init__(self, num_samples: int, num_classes: int = 10, height: int = 400, width: int = 500) -> None:
        given = {"samples": num_samples, "classes": num_classes, "height": height, "width": width}
        for name, value in given.items():
            if value < 1:
                raise ValueError(f"Synthetic data with {name} = {value}: it must be 1 or more")
        self.num_samples, self.num_classes = num_samples, num_classes
        self.class_names: list[str] | None = [f"class {label}" for label in range(num_classes)]
        self._size = (height, width)

    def image_sizes(self) -> tuple[int, int, int, int]:
        return self._size + self._size

    def rows(self, indices: np.ndarray) -> SampleTable:
        """Return the samples' sizes and labels, with nothing to read."""
        rows = SampleTable.empty(indices)
        rows.fd[:], rows.offset[:], rows.num_bytes[:], rows.mode[:] = -1, 0, 0, 0
        rows.height[:], rows.width[:] = self._size
        rows.label[:] = rows.indices % self.num_classes
        return rows

    def labels(self) -> np.ndarray:
        return (np.arange(self.num_samples) % self.num_classes).astype(np.int32)

    def name(self, index: int) -> str:
        return f"synthetic sample {index}"

    def digest(self) -> str:
        return f"synthetic-{self.num_samples}-{self.num_classes}-{self._size[0]}x{self._size[1]}"
