"""Find the validation images that are training images: those with the same stored bytes.

Names and labels do not count. The tables are compared first, since equal images agree in bytes, height and
width. Of those that do, the last bytes are read, and all bytes only where these agree too. An image at the
same place of the same file is not read, nor are dataset files with the same checksums.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from fastpsl.console.progress import operation
from fastpsl.console.words import number_of
from fastpsl.files.digest import blake2b
from fastpsl.files.system_errors import input_errors
from fastpsl.files.workers import map_in_order
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.datasets.subset import Subset
from fastpsl.pipelines.decoders.choose import is_packed
from fastpsl.pipelines.interface.dataset import Dataset, SampleTable, is_of_one_file, open_file
from fastpsl.pipelines.interface.identity import parts_of

MAX_BYTES = 4_000_000_000  # to read; where it would be more, it is not looked
_CHUNK = 65_536  # rows of a table per read
_LAST_BYTES, _ALL_BYTES = 4096, 1 << 62
_THREADS = 16  # remote storage answers slowly, but many requests at once


@dataclass(frozen=True)
class SharedImages:
    """The validation images that are training images.

    Attributes:
        rows: For each validation image a training image of the same bytes, int64 [n]; -1 for none. The n-th
            of several equal validation images has the n-th of the equal training images, or the last. None
            where no search was made.
        num_train: The number of training images.
    """

    rows: np.ndarray | None
    num_train: int

    @property
    def num(self) -> int | None:
        """The number of validation images that are training images; None where no search was made."""
        return None if self.rows is None else int((self.rows >= 0).sum())

    @property
    def are_all(self) -> bool:
        """Whether validation and training images are the same ones, in any order."""
        return self.rows is not None and np.array_equal(np.sort(self.rows), np.arange(self.num_train))

    @property
    def own(self) -> np.ndarray | None:
        """Each validation image's row among the training images if both are the same ones, else None."""
        return self.rows if self.are_all else None

    def line(self) -> str:
        """Return a line that tells how many there are; empty if there are none, or no search was made."""
        if self.rows is None or not self.num:
            return ""
        are = "is a training image" if self.num == 1 else "are training images"
        return (
            f"{self.num:,} of {number_of(len(self.rows), 'validation image')} {are} (the same stored bytes): "
            "the score is too high; give others as --val"
        )


def shared_images(val: Dataset, train: Dataset) -> SharedImages:
    """Return which images of `val` are images of `train`, by hashes of their stored bytes.

    Images that cannot be read are none. No search is made where more than `MAX_BYTES` would be read, or where
    bytes of remote data are not on this machine. Nor is one made where either data set has packed
    coefficients.

    Raises:
        ValueError: A file was written to since it was opened, or the system lets no more files be read.
    """
    identity = train.digest()
    if val.digest() == identity and parts_of(identity)[1]:
        return SharedImages(np.arange(train.num_samples), train.num_samples)
    if is_packed(val) != is_packed(train):
        return SharedImages(None, train.num_samples)
    asked, there = _Images.of(val), _Images.of(train)
    rows = _in_place(asked, there)
    asked = asked.part((rows < 0) & (asked.num_bytes > 0))
    for most_bytes in (_LAST_BYTES, _ALL_BYTES):
        asked, there = asked.in_common_with(there), there.in_common_with(asked)
        num_bytes = np.minimum(np.concatenate([asked.num_bytes, there.num_bytes]), most_bytes)
        if num_bytes.sum() > MAX_BYTES or not (asked.are_here() and there.are_here()):
            return SharedImages(None, train.num_samples)
        with operation("comparing validation with training images", "images", len(num_bytes)) as progress:
            asked, there = (images.hashed(most_bytes, progress) for images in (asked, there))
        if num_bytes.max(initial=0) < most_bytes:  # all of their bytes were read
            break
    places = _matched(asked.keys, there.keys)
    rows[asked.indices[places >= 0]] = there.indices[places[places >= 0]]
    return SharedImages(rows, train.num_samples)


@dataclass(frozen=True)
class _Images:
    """A number of images of a data set. Those whose keys differ are different images."""

    data: Dataset
    indices: np.ndarray  # int64 [n]
    num_bytes: np.ndarray  # int64 [n]
    keys: np.ndarray  # int64 [n]

    @classmethod
    def of(cls, data: Dataset) -> "_Images":
        indices, num_bytes, keys = np.arange(data.num_samples), list[np.ndarray](), list[np.ndarray]()
        for rows in _tables(data, indices):
            num_bytes.append(rows.num_bytes)
            keys.append(rows.num_bytes << 32 ^ rows.height.astype(np.int64) << 16 ^ rows.width)
        return cls(data, indices, np.concatenate(num_bytes), np.concatenate(keys))

    def part(self, which: np.ndarray) -> "_Images":
        """Return the images that `which`, bool [n], selects."""
        return _Images(self.data, self.indices[which], self.num_bytes[which], self.keys[which])

    def in_common_with(self, others: "_Images") -> "_Images":
        """Return the images whose key is among the keys of `others`."""
        return self.part(np.isin(self.keys, others.keys))

    def are_here(self) -> bool:
        """Return whether the images' bytes are on this machine."""
        data, indices = self.data, self.indices
        if isinstance(data, Subset):
            indices, data = data.indices[indices], data.data
        remote = data.remote if isinstance(data, Beton) else None
        return remote is None or not len(indices) or remote.share_here(indices) == 1

    def hashed(self, most_bytes: int, progress: operation) -> "_Images":
        """Return the images that can be read, with hashes of their last bytes as keys."""
        keys = list[int | None]()
        for rows in _tables(self.data, self.indices, wait=True):
            digest = partial(_hash, rows, most_bytes)
            threads = min(_THREADS, len(rows.indices))
            for _, key in map_in_order(digest, range(len(rows.indices)), threads, "fastpsl-hash"):
                keys.append(key)
                progress.update(progress.num_done + 1)
        is_read = np.array([key is not None for key in keys], bool)
        return replace(self.part(is_read), keys=np.array([key for key in keys if key is not None], np.int64))


def _tables(data: Dataset, indices: np.ndarray, *, wait: bool = False) -> Iterator[SampleTable]:
    for start in range(0, len(indices), _CHUNK):
        part = indices[start : start + _CHUNK]
        if wait:
            data.wait(part)
        yield data.rows(part)


def _in_place(val: _Images, train: _Images) -> np.ndarray:
    """Return int64 [n]: i where images i of `val` and `train` are the same bytes of one file, else -1."""
    rows = np.full(len(val.keys), -1, np.int64)
    num = min(len(val.keys), len(train.keys))
    alike = np.flatnonzero(val.keys[:num] == train.keys[:num])
    for one, other in zip(_tables(val.data, alike), _tables(train.data, alike), strict=True):
        files = _files(one)
        is_same = (files == _files(other)) & (files != "") & (one.offset == other.offset)
        rows[one.indices[is_same]] = one.indices[is_same]
    return rows


def _files(rows: SampleTable) -> np.ndarray:
    """Return a text for each sample's file, str objects [n], equal for one file; "" without a file."""
    files = rows.path.copy()
    for fd in np.unique(rows.fd[rows.fd >= 0]).tolist():
        status = os.fstat(fd)
        files[rows.fd == fd] = f"{status.st_dev} {status.st_ino}"
    return files


def _hash(rows: SampleTable, most_bytes: int, i: int) -> int | None:
    """Return a hash of the last stored bytes of row i; None if they cannot be read."""
    num_bytes = int(rows.num_bytes[i])
    start = max(0, num_bytes - most_bytes)
    with input_errors(rows.path[i] or "the images"):
        try:
            if rows.path[i]:
                with open(open_file(rows.path[i]), "rb") as file:
                    is_whole = os.fstat(file.fileno()).st_size == num_bytes
                    data = os.pread(file.fileno(), num_bytes - start, start) if is_whole else b""
            else:
                data = os.pread(int(rows.fd[i]), num_bytes - start, int(rows.offset[i]) + start)
        except OSError as error:
            if not is_of_one_file(error):
                raise
            return None
    if len(data) != num_bytes - start:
        return None
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little", signed=True)


def _matched(asked: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Return for each key the place of an equal one in `there`, int64 [n]; -1 for none.

    The n-th of equal keys gets the place of the n-th equal key in `there`, or of the last.
    """
    order, of_asked = np.argsort(there, kind="stable"), np.argsort(asked, kind="stable")
    ordered = asked[of_asked]
    number = np.empty(len(asked), np.int64)  # among equal keys
    number[of_asked] = np.arange(len(asked)) - np.searchsorted(ordered, ordered)
    first, stop = (np.searchsorted(there[order], asked, side) for side in ("left", "right"))
    places = np.full(len(asked), -1, np.int64)
    is_there = stop > first
    places[is_there] = order[np.minimum(first + number, stop - 1)[is_there]]
    return places
