"""Folders and lists of image files, opened as a data set by an index of their headers.

An index is a folder of three files in the cache: the records and the names, which are memory-mapped, and a
summary. One process at a time writes it under another name and renames it.
"""

import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
from typing_extensions import override

from fastpsl.console.progress import operation
from fastpsl.files.caches import cache_folder, keeping
from fastpsl.files.digest import blake2b
from fastpsl.files.locks import locked
from fastpsl.files.system_errors import input_error, is_of_the_system
from fastpsl.files.untrusted import map_npy
from fastpsl.files.workers import map_in_order
from fastpsl.pipelines.datasets.measured import NUM_MEASURED, Measured, keep, kept, measure
from fastpsl.pipelines.image.bands import PACKAGES, is_missing, leaves_jpeg
from fastpsl.pipelines.image.image_file import FORMATS, check_bytes, upright_size
from fastpsl.pipelines.image.jpeg import HEADER_GOOD, jpeg_header
from fastpsl.pipelines.image.orientation import TURNED, usual_jpeg_orientation
from fastpsl.pipelines.interface.dataset import (
    MAX_PIXELS,
    MODE_FILE,
    MODE_JPEG,
    UPRIGHT,
    BadImage,
    Local,
    SampleTable,
    checked,
    is_of_one_file,
    spread_indices,
)
from fastpsl.pipelines.interface.reading import PLAIN, Reading
from fastpsl.pipelines.interface.source import Source
from fastpsl.pipelines.readers.folder import image_folder
from fastpsl.pipelines.readers.listed import image_list

_VERSION = "folder-v4"  # a new name whenever the contents of the index change
_LISTING = "folder-v1"  # the same for the digest of a listing, which runs are resumed by
_THREADS = 16  # remote storage answers slowly, but many requests at once
# Pillow reads the size of a JPEG whose first scan is further back.
_HEAD_BYTES, _LONG_HEAD_BYTES = 1 << 16, 1 << 24

RECORD = np.dtype(
    [
        ("name_start", "<i8"),  # offset in the names
        ("name_bytes", "<i4"),
        ("label", "<i4"),  # -1 for none
        ("num_bytes", "<i8"),
        ("height", "<i4"),  # px, upright
        ("width", "<i4"),
        ("mode", "u1"),  # MODE_JPEG or MODE_FILE
        ("orientation", "u1"),  # EXIF's, of JPEGs
    ]
)


@dataclass
class Summary:
    """The part of an index that concerns all files."""

    num_samples: int
    # Min height, min width, max height, max width in px, over the images that can be read.
    sizes: tuple[int, int, int, int]
    num_bad_images: int
    first_bad: str  # name and reason
    num_name_bytes: int
    digest: str  # of names, labels and sizes in bytes
    written: str  # a digest of these and of the times at which files were written
    first_unread: str = ""  # the path of the first file that the system did not let read


@final
@dataclass(frozen=True)
class FolderIndex:
    """The index of a folder or a list."""

    summary: Summary
    records: np.ndarray  # RECORD [num_samples], memory-mapped
    names: np.ndarray  # uint8, memory-mapped: the paths as the source names them, one after another
    path: Path

    @property
    def key(self) -> str:
        """A digest of the files' names, sizes and times; when it changes, the headers are read again."""
        return self.path.name.partition("-")[2]


@dataclass(frozen=True)
class _File:
    num_bytes: int
    written_ns: int
    changed_ns: int  # the system's time of change, which programs cannot set, and a copy has anew
    reason: str = ""  # why it cannot be read
    is_unread: bool = False  # because of the system


_NO_FILE = _File(0, 0, 0)


def folder_index(files: Source, origin: Path, reading: Reading = PLAIN) -> FolderIndex:
    """Return the index of all files, reading the headers again where a file has changed."""
    root = os.path.realpath(origin)
    folder = cache_folder() / "folders"
    of_bands = str(reading.bands).encode() if reading.bands else b""
    prefix = blake2b(os.fsencode(root) + of_bands, digest_size=8).hexdigest()
    digests = _listing_digests(files, origin)
    path = folder / f"{prefix}-{digests.key}"
    with keeping(folder, f"the index of {root}"):
        index = _load(path)
        if index is None or _is_outdated(index):
            folder.mkdir(parents=True, exist_ok=True)
            waiting = f"{root}: another process reads the headers, waiting for it"
            with locked(folder / f"{prefix}.lock", waiting):
                index = _load(path)
                if index is None or _is_outdated(index):  # no other process has made it meanwhile
                    _make(files, origin, path, digests, reading)
                    index = _load(path)
    assert index is not None
    return index


def _is_outdated(index: FolderIndex) -> bool:
    """Return whether a file can be read by now that could not when the index was made."""
    first = index.summary.first_unread
    return bool(first) and not _scan(first, PLAIN)[0].is_unread


class _Digests:
    """The digests of a listing: of names, labels and sizes; with the times of writing; with all times."""

    def __init__(self) -> None:
        # The formats are a part of the key, because another Pillow or an installation adds some.
        seeds = _LISTING, _VERSION, f"{_VERSION} {FORMATS} {[*map(is_missing, PACKAGES)]}"
        self._all = [blake2b(seed.encode(), digest_size=16) for seed in seeds]

    def add(self, name: str, label: int, file: _File) -> None:
        line = b"%s\0%d\0%d\0" % (os.fsencode(name), label, file.num_bytes)
        listing, written, key = self._all
        listing.update(line)
        line += b"%d\0" % file.written_ns
        written.update(line)
        key.update(line + b"%d\0" % file.changed_ns)

    @property
    def listing(self) -> str:
        return self._all[0].hexdigest()

    @property
    def written(self) -> str:
        return self._all[1].hexdigest()

    @property
    def key(self) -> str:
        return self._all[2].hexdigest()


def _listing_digests(files: Source, origin: Path) -> _Digests:
    digests = _Digests()
    entries = map_in_order(lambda sample: _stat(sample.image), files.samples(), _THREADS, "list")
    with operation(f"{origin}: looking at sizes and times", "files", files.num_total) as progress:
        for num, (sample, file) in enumerate(entries, start=1):
            digests.add(sample.name, sample.label, file)
            progress.update(num)
    return digests


def _stat(path: object) -> _File:
    try:
        status = os.stat(path)  # type: ignore[arg-type]
    except OSError as error:  # such as a broken link
        return _unread(path, error)
    return _File(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _scan(path: object, reading: Reading) -> tuple[_File, int, int, int, int]:
    """Return a file and its image's height, width, mode and orientation; 1 x 1 px where it cannot be read."""
    file = _stat(path)
    try:
        check_bytes(file.num_bytes)
        jpeg = _jpeg(str(path), file.num_bytes, reading)
        if jpeg:
            return file, *jpeg
        height, width = upright_size(str(path), reading)
        return file, height, width, MODE_FILE, UPRIGHT
    except OSError as error:
        if not file.reason:
            file = _unread(path, error, file)
    except BadImage as error:
        file = replace(file, reason=file.reason or str(error))
    return file, 1, 1, MODE_FILE, UPRIGHT


def _unread(path: object, error: OSError, file: _File = _NO_FILE) -> _File:
    """Return a file that cannot be read; raise ValueError where no other could be read either."""
    if is_of_the_system(error) and not is_of_one_file(error):
        raise input_error(path, error) from None
    return replace(file, reason=str(error.strerror), is_unread=is_of_the_system(error))


def _jpeg(path: str, num_bytes: int, reading: Reading) -> tuple[int, int, int, int] | None:
    """Return height, width, mode and orientation of a JPEG that every decoder takes; None for other files."""
    with open(path, "rb") as file:
        data = file.read(_HEAD_BYTES)
        header = jpeg_header(data, len(data))
        orientation = usual_jpeg_orientation(data)
        is_good = header[0] == HEADER_GOOD and orientation is not None
        if data[:2] == b"\xff\xd8" and not is_good and num_bytes > len(data):
            data += file.read(_LONG_HEAD_BYTES)
            header, orientation = jpeg_header(data, len(data)), usual_jpeg_orientation(data)
    status, height, width, components, _, precision = header
    if status != HEADER_GOOD or components not in (1, 3) or precision != 8 or height * width > MAX_PIXELS:
        return None
    if orientation is None or not leaves_jpeg(reading.bands, components):
        return None
    size = (width, height) if orientation >= TURNED else (height, width)
    return (*size, MODE_JPEG, orientation)


def _why_again(path: Path, digests: _Digests) -> str:
    """Return why headers are read although there is an index of the same origin; empty if there is none."""
    for other in path.parent.glob(f"{path.name.split('-')[0]}-*"):
        if other == path or (index := _load(other)) is None:
            continue
        if index.summary.digest != digests.listing:
            return " again, because files came, went or changed their size"
        if index.summary.written != digests.written:
            return " again, because files were written to"
        return (
            " again, because the status of files has changed (chmod does it, and so do tools that set times)"
        )
    return ""


def _make(files: Source, origin: Path, path: Path, digests: _Digests, reading: Reading) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        summary, new_key = _write(files, origin, temporary, _why_again(path, digests), reading)
        if new_key != digests.key:
            raise ValueError(f"{origin}: has changed while its headers were read; start again")
        (temporary / "summary.json").write_text(json.dumps(asdict(summary)))
        shutil.rmtree(path, ignore_errors=True)  # an incomplete index
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for other in path.parent.glob(f"{path.name.split('-')[0]}-*"):  # older indices of the same origin
        if other != path:
            shutil.rmtree(other, ignore_errors=True)


def _write(files: Source, origin: Path, path: Path, why_again: str, reading: Reading) -> tuple[Summary, str]:
    """Write records and names of all files; return their summary and the key of the files as read."""
    num = files.num_total
    records = np.lib.format.open_memmap(path / "records.npy", mode="w+", dtype=RECORD, shape=(num,))
    digests = _Digests()
    summary = Summary(num, (1 << 30, 1 << 30, 0, 0), 0, "", 0, "", "")
    headers = map_in_order(lambda sample: _scan(sample.image, reading), files.samples(), _THREADS, "headers")
    with (
        open(path / "names", "wb") as names,
        operation(f"{origin}: reading headers{why_again}", "files", num) as progress,
    ):
        for i, (sample, (file, height, width, mode, orientation)) in enumerate(headers):
            digests.add(sample.name, sample.label, file)
            name = os.fsencode(sample.name)
            records[i] = (
                summary.num_name_bytes, len(name), sample.label, file.num_bytes,
                height, width, mode, orientation,
            )  # fmt: skip
            summary.num_name_bytes += names.write(name)
            if file.reason:
                summary.num_bad_images += 1
                summary.first_bad = summary.first_bad or f"{sample.name}: {file.reason}"
                if file.is_unread:
                    summary.first_unread = summary.first_unread or str(sample.image)
            else:
                low_height, low_width, most_height, most_width = summary.sizes
                summary.sizes = (
                    min(low_height, height), min(low_width, width),
                    max(most_height, height), max(most_width, width),
                )  # fmt: skip
            progress.update(i + 1, summary.num_bad_images)
    records.flush()
    summary.digest, summary.written = digests.listing, digests.written
    return summary, digests.key


def _load(path: Path) -> FolderIndex | None:
    """Return the index; None where it is missing or incomplete."""
    try:
        fields = json.loads((path / "summary.json").read_text())
        summary = Summary(**{**fields, "sizes": tuple(fields["sizes"])})
        records = map_npy(path / "records.npy")
        names = np.memmap(path / "names", np.uint8, "r", shape=(summary.num_name_bytes,))
        return FolderIndex(summary, records, names, path) if len(records) == summary.num_samples else None
    except (FileNotFoundError, ValueError, TypeError, KeyError, EOFError, RecursionError):  # a power cut
        return None


class ImageFiles(Local):
    """A data set of image files with an index of their headers: the common part of folders and lists.

    Opening looks at every file, and reads the headers where one has changed since the last time (the index is
    in the cache folder). Files that cannot be read are bad samples.
    """

    kind = "folder"  # a decoder opens each file by its path

    def __init__(self, files: Source, origin: Path, root: Path, reading: Reading = PLAIN) -> None:
        # Absolute, because a process may change its working folder while it trains.
        self.root = Path(os.path.abspath(root))
        self._index = folder_index(files, origin, reading)
        summary = self._index.summary
        if summary.num_bad_images == summary.num_samples:
            self.close()
            raise ValueError(
                f"{origin}: none of {summary.num_samples:,} images can be read, the first is "
                f"{summary.first_bad}; repair them, or give other images"
            )
        if summary.num_bad_images:
            warnings.warn(
                f"{origin}: {summary.num_bad_images:,} of {summary.num_samples:,} images cannot be read, "
                f"the first is {summary.first_bad}; each is a bad sample",
                stacklevel=3,
            )
        self.class_names, self.left_out = files.class_names, files.left_out
        self.num_samples = summary.num_samples
        self.num_classes = len(files.class_names or ()) or int(self.labels().max()) + 1
        try:
            self.reading = self._measured(origin, reading.bands).applied(origin, reading)
        except BaseException:
            self.close()
            raise

    def _measured(self, origin: Path, bands: tuple[int, ...]) -> Measured:
        """Return the measured values of some of the images, which are looked at once."""
        records, path = self._index.records, self._index.path / f"values{'-'.join(map(str, bands))}.json"
        if (measured := kept(path)) is None:
            chosen = spread_indices(self.num_samples, NUM_MEASURED)
            files = [self.name(i) for i in chosen[records["mode"][chosen] == MODE_FILE].tolist()]
            measured = measure(origin, files, len(chosen), bands)
            with keeping(path.parent, f"the index of {origin}"):
                keep(path, measured)
        return measured

    def image_sizes(self) -> tuple[int, int, int, int]:
        """Return (min height, min width, max height, max width) over all readable images, upright, in px."""
        return self._index.summary.sizes

    def rows(self, indices: np.ndarray) -> SampleTable:
        """Return the table of the samples `indices`, int64 [B] in [0, num_samples)."""
        rows = SampleTable.empty(checked(indices, self.num_samples))._replace(reading=self.reading)
        records = self._index.records[rows.indices]
        rows.fd[:], rows.offset[:] = -1, 0
        for column in ("num_bytes", "height", "width", "mode", "label", "orientation"):
            getattr(rows, column)[:] = records[column]
        for i, record in enumerate(records):
            rows.path[i] = os.path.join(self.root, self._name(record))
        return rows

    def _name(self, record: np.ndarray) -> str:
        start = int(record["name_start"])
        return os.fsdecode(self._index.names[start : start + int(record["name_bytes"])].tobytes())

    def labels(self) -> np.ndarray:
        """Return all labels, int32 [num_samples]; -1 for none."""
        return np.ascontiguousarray(self._index.records["label"])

    def name(self, index: int) -> str:
        """Return the file's path."""
        return os.path.join(self.root, self._name(self._index.records[index]))

    @override
    def names(self) -> Iterator[str]:
        """Yield each file's path below the root."""
        yield from map(self._name, self._index.records)

    def digest(self) -> str:
        """Return a digest of all names, labels and sizes in bytes, which a copy of the files shares.

        Other pixels of the same files, by a range or bands, have another one.
        """
        digest = self._index.summary.digest
        if self.reading == PLAIN:
            return digest
        text = f"{digest} {self.reading.in_words()}"
        return blake2b(text.encode(), digest_size=16).hexdigest()

    @override
    def stamp(self) -> str:
        """Return a digest of the files' sizes and times as well."""
        return self._index.key

    @override
    def close(self) -> None:
        """Release the index; rows returned before stay as they are."""
        # Copies have the same index.
        self._index = replace(self._index, records=np.empty(0, RECORD), names=np.empty(0, np.uint8))

    def __del__(self, is_exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        """Release the index if it was left open, and warn of it as Python's own files do."""
        if is_exiting():  # globals may be gone
            return
        if "_index" in self.__dict__ and len(self._index.records):
            warnings.warn(f"unclosed images of {self.root}", ResourceWarning, stacklevel=2, source=self)
            self.close()


@final
class Folder(ImageFiles):
    """The images below `root`: an ImageFolder tree (a class per folder), or a flat folder without labels."""

    def __init__(self, root: str | Path, reading: Reading = PLAIN) -> None:
        files = image_folder(root)
        for warning in files.warnings:
            warnings.warn(f"{root}: {warning}", stacklevel=2)
        super().__init__(files, Path(root), Path(root), reading)


@final
class Listed(ImageFiles):
    """The images that the file `path` names (`readers.listed.image_list`), with its labels."""

    def __init__(self, path: str | Path, reading: Reading = PLAIN) -> None:
        files = image_list(path)
        super().__init__(files, Path(path), files.root, reading)
