""".npz files of images and labels, read in chunks from the zip, so that the whole array is never in memory.

Images are uint8 [N, H, W, 3]; [N, H, W, 1] and [N, H, W] are grey. [N, 3, H, W] and [N, 1, H, W] are accepted
where no other reading is possible. Labels are numbers or text [N] or [N, 1], or missing (labels.py).

Names consist of the words below, and of a split before or after them. So images and labels are found, Keras's
x_train and y_train, and MedMNIST's train_images and train_labels. numpy.savez calls arrays without a name
arr_0 and arr_1.
"""

import contextlib
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random

import numpy as np
from typing_extensions import override

from fastpsl.files.system_errors import input_error
from fastpsl.pipelines.beton.shard import MAX_LABEL
from fastpsl.pipelines.interface.source import Counted, Picks, Sample, choose_split
from fastpsl.pipelines.readers.labels import NO_LABELS, Census, class_number

IMAGE_WORDS = ("images", "image", "imgs", "img", "data", "x")
LABEL_WORDS = ("labels", "label", "targets", "target", "y")
_UNNAMED = {"arr_0": "images", "arr_1": "labels"}
_CHUNK_BYTES = 1 << 22
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_SAVE = "save it with np.savez(file, images=..., labels=...)"


@dataclass(frozen=True)
class Member:
    """An array in an .npz, as its header describes it."""

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    is_fortran: bool
    start: int  # offset of its values in the member, in bytes

    @override
    def __str__(self) -> str:
        return f"{self.key} {self.dtype} {list(self.shape)}"

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize


@dataclass
class Arrays(Counted):
    """The images and labels of an .npz, as their headers describe them."""

    path: Path
    images: Member
    labels: np.ndarray  # int32 [N]
    layout: str  # "NHWC", "NHW" or "NCHW"

    def samples(self, skip: int = 0) -> Iterator[Sample]:
        """Yield this shard's images in order, uint8 [H, W, 3]."""
        positions = self.here[skip:]
        with _errors(self.path), zipfile.ZipFile(self.path) as archive:
            images = chain.from_iterable(_chunks(archive, self.images, positions))
            for index, image in enumerate(images, positions.start):
                name = f"{self.images.key}[{index}]"
                yield Sample(name, _rgb(image, self.layout), int(self.labels[index]))

    def picks(self, num: int, random: Random) -> Picks:
        """Choose the first images, because all have one size."""
        return Picks("the first", False, self.samples())


def arrays(path: Path, split: str | None = None, shard: tuple[int, int] = (0, 1)) -> Arrays:
    """Open an .npz of images and count them; `shard` (i, n) keeps the i-th of n runs of neighbours."""
    with _errors(path), zipfile.ZipFile(path) as archive:
        members = [
            _header(path, archive, info) for info in archive.infolist() if info.filename.endswith(".npy")
        ]
    contents = ", ".join(map(str, members)) or "nothing"
    images, labels = dict[str, Member](), dict[str, Member]()
    for member in members:
        tokens = re.split(r"[\W_]+", _UNNAMED.get(member.key, member.key).lower())
        member_split = "_".join(token for token in tokens if token not in (*IMAGE_WORDS, *LABEL_WORDS))
        num_sides = len(member.shape)
        is_images = num_sides >= 3 and not set(tokens).isdisjoint(IMAGE_WORDS)
        if is_images or (num_sides <= 2 and not set(tokens).isdisjoint(LABEL_WORDS)):
            role, found = ("images", images) if is_images else ("labels", labels)
            if member_split in found:
                raise ValueError(
                    f"{path}: both {found[member_split]} and {member} are {role} by name; {_SAVE}"
                )
            found[member_split] = member
    if not images:
        raise ValueError(
            f"{path}: holds {contents}; none is images [N, H, W, 3] by its name "
            f"({', '.join(IMAGE_WORDS)}), {_SAVE}"
        )
    split = choose_split(path, split.lower() if split else None, images)
    image, label = images[split], labels.get(split)
    layout = _layout(path, image)
    notes = [f"images from {image}" + (", channels first" if layout == "NCHW" else "")]
    notes.append(f"labels from {label}" if label else "no labels: -1")
    num, unlabelled = image.shape[0], np.full(image.shape[0], -1, np.int32)
    source = Arrays(path, image, unlabelled, layout, counts=[num], mode="raw", notes=notes, shard=shard)
    if label:
        _take_labels(source, label)
    return source


def _take_labels(source: Arrays, member: Member) -> None:
    """Read the labels; raise ValueError where they are not one per image, or out of range."""
    path, num = source.path, source.num_total
    if member.dtype.kind not in "biufSU" or member.shape not in ((num,), (num, 1)):
        raise ValueError(
            f"{path}: {member} beside {source.images}; one label per image is wanted, a number or a name (of "
            f"one-hot labels, labels.argmax(1)), {_SAVE}"
        )
    census = Census()
    with _errors(path), zipfile.ZipFile(path) as archive:
        for chunk in _chunks(archive, member, range(num)):
            for label in np.unique(chunk).tolist():
                census.add(label)
        if fault := census.fault:
            source.warnings.append(f"{member.key} {fault}: {NO_LABELS}")
            return
        if census.lowest < -1 or census.highest > MAX_LABEL:
            raise ValueError(
                f"{path}: {member.key} holds labels from {census.lowest} to {census.highest}; "
                f"give -1 (none) to {MAX_LABEL}"
            )
        source.class_names, start = census.class_names, 0
        known = source.numbers
        for chunk in _chunks(archive, member, range(num)):
            labels, places = np.unique(chunk, return_inverse=True)
            numbers = [class_number(label, known) for label in labels.tolist()]
            source.labels[start : start + len(chunk)] = np.array(numbers, np.int32)[places.reshape(-1)]
            start += len(chunk)


def _layout(path: Path, images: Member) -> str:
    """Return NHWC, NHW or NCHW; raise ValueError for any other type or shape."""
    shape = images.shape
    if images.dtype != np.uint8:
        raise ValueError(f"{path}: {images}; uint8 from 0 to 255 is wanted, convert it and {_SAVE}")
    if not all(shape):
        raise ValueError(f"{path}: {images} holds no pixel; uint8 [N, H, W, 3] is wanted, {_SAVE}")
    if images.is_fortran:
        raise ValueError(
            f"{path}: {images} is in Fortran's order; call np.ascontiguousarray(images), then {_SAVE}"
        )
    if len(shape) == 3:
        return "NHW"
    is_first, is_last = len(shape) == 4 and shape[1] in (1, 3), len(shape) == 4 and shape[3] in (1, 3)
    if is_first and is_last:
        raise ValueError(
            f"{path}: {images}, channels may be first or last; uint8 [N, H, W, 3] is wanted, {_SAVE}"
        )
    if not is_first and not is_last:
        raise ValueError(f"{path}: {images} is of another shape; uint8 [N, H, W, 3] is wanted, {_SAVE}")
    return "NCHW" if is_first else "NHWC"


def _rgb(image: np.ndarray, layout: str) -> np.ndarray:
    if layout == "NHW":
        image = image[:, :, None]
    elif layout == "NCHW":
        image = image.transpose(1, 2, 0)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else np.ascontiguousarray(image)


def _header(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    with archive.open(info) as file:
        key = info.filename[: -len(".npy")]
        try:
            version = np.lib.format.read_magic(file)
            shape, is_fortran, dtype = _HEADER_READERS[version](file)
        except (ValueError, KeyError, EOFError, SyntaxError, TypeError):
            raise ValueError(f"{path}: {key} is no array; copy the file again, or {_SAVE}") from None
        member = Member(key, shape, dtype, is_fortran, file.tell())
    if dtype.hasobject:
        raise ValueError(
            f"{path}: {key} holds Python objects, such as arrays of several sizes, which are not unpickled; "
            "save arrays of numbers, or give a folder of images"
        )
    if shape and info.file_size - member.start != shape[0] * member.row_bytes:
        raise ValueError(
            f"{path}: {member} does not have the length that its header tells; "
            f"copy the file again, or {_SAVE}"
        )
    return member


def _chunks(archive: zipfile.ZipFile, member: Member, rows: range) -> Iterator[np.ndarray]:
    """Yield some rows of an array at a time."""
    chunk_rows = max(1, _CHUNK_BYTES // max(1, member.row_bytes))
    with archive.open(member.key + ".npy") as file:
        file.seek(member.start + rows.start * member.row_bytes)
        for start in range(rows.start, rows.stop, chunk_rows):
            num = min(chunk_rows, rows.stop - start)
            data = bytearray(file.read(num * member.row_bytes))
            if len(data) < num * member.row_bytes:
                raise EOFError
            yield np.frombuffer(data, member.dtype).reshape(num, *member.shape[1:])


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turn errors of a damaged, locked or missing zip into a ValueError of one line."""
    try:
        yield
    except OSError as error:
        raise input_error(path, error) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or "it is cut short"
        raise ValueError(f"{path}: no sound .npz ({reason}); copy it again, or {_SAVE}") from None
