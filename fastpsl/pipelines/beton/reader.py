"""The reader of dataset files: one file or several shards of the stock FFCV format as one list of samples.

Opening checks every pointer, size, mode and label of the tables, so that C code may trust them later. The
tables stay on disk. Memory per sample is zero, or 4 bytes where the allocation table is not in sample order,
as ffcv's writer with several processes leaves it.
"""

import glob
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from typing_extensions import override

from fastpsl.console.progress import operation
from fastpsl.console.words import pasted
from fastpsl.files.digest import blake2b
from fastpsl.files.remote.address import is_remote
from fastpsl.files.remote.cache import Cache
from fastpsl.files.system_errors import input_error
from fastpsl.pipelines.beton.output import left_out_before
from fastpsl.pipelines.beton.remote import RemotePages
from fastpsl.pipelines.beton.shard import COEFFICIENTS, COPY_AGAIN, HEADER, Shard, chunks
from fastpsl.pipelines.beton.sidecar import (
    Written,
    checksum_bytes,
    has_checksums,
    how_written,
    missing_shards,
    read_sidecar,
    set_faults,
    shard_paths,
)
from fastpsl.pipelines.image.coefficients import to_jpeg
from fastpsl.pipelines.interface.dataset import BadImage, SampleTable, checked, size_in_words, written_when
from fastpsl.pipelines.interface.identity import identity
from fastpsl.pipelines.interface.reading import PLAIN, Reading


@final
class Beton:
    """One dataset file in FFCV's format (.beton), or several shards as one list of samples.

    Opening checks every pointer, size, mode and label of the tables. Shards are in the sorted order of their
    names. A copy, also one that another process unpickles, opens the files again. Close it, too.

    Args:
        source: A file, a glob, or several files. Or an address, or a glob of addresses, such as
            `s3://bucket/train-*.beton`.
        cache: The cache for files that live elsewhere; by default one in the folder for temporary files.

    Attributes:
        paths: The files; of files that live elsewhere, their places in the cache.
        remote: What fetches the pages of files that live elsewhere; None for local ones.
        num_samples: The number of samples, which `len` returns, too.
        num_classes: The number of classes.
        class_names: The names of the classes, or None.
        split: The name of the part of the source, such as "train"; empty if it is not known.
        max_bytes: The largest number of bytes of a sample.
        is_raw: Whether all images are stored as raw pixels, not as JPEGs.
        is_packed: Whether some are stored as packed coefficients, which ffcv and DALI do not read.
        left_out: The numbers of what was left out when it was written, as far as the JSONs tell.
        reading: The range and the bands that its pixels are of, as far as the JSONs tell.

    Raises:
        ValueError: A file is missing, empty, truncated, of another format, out of bounds or has labels out of
            range. Or the files' JSONs belong to different data sets. The message is one line with the path
            and the remedy.
    """

    kind = "beton"

    def __init__(self, source: "str | Path | Sequence[str | Path]", cache: Cache | None = None):
        self.remote = RemotePages(str(source), cache or Cache()) if is_remote(source) else None
        self.paths = self.remote.paths if self.remote else shard_paths(source)
        self._places = [os.path.abspath(path) for path in self.paths]  # the working folder may change
        names = self.remote.names if self.remote else [str(path) for path in self.paths]
        self.class_names: list[str] | None = None
        self.shards: list[Shard] = []  # for `verify` and `info`
        self._written: list[Written] = []
        records = list[dict[str, Any]]()
        try:
            name = names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            with operation(f"{name}: checking its tables", "files", len(self.paths)) as progress:
                for path, name in progress.track(list(zip(self.paths, names, strict=True))):
                    records.append(self._add(path, name))
            if faults := set_faults(self._written):
                raise ValueError(faults[0])
            reading = _common_reading(names, records)
            if self.remote:
                is_glob = glob.has_magic(str(source)) and names != [str(source)]
                if is_glob and (missing := missing_shards(self._written)):
                    raise ValueError(f"{source}: is incomplete; {missing[0]}")
                self.remote.open(self.shards)
            elif (
                isinstance(source, str | Path)  # somebody who names shards one by one may want these alone
                and self.paths != [Path(source)]
                and (missing := missing_shards(self._written))
            ):
                more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
                warnings.warn(f"{missing[0]}{more}", stacklevel=2)
            if shard := next((shard for shard in self.shards if shard.no_labels), None):
                fields = ", ".join(shard.no_labels)
                warnings.warn(
                    f"{shard.name}: has no IntField, and {fields} is not read: no labels; "
                    "for class labels, write it again with an IntField",
                    stacklevel=2,
                )
        except BaseException:
            self.close()
            raise
        self._starts = np.cumsum([0] + [shard.num_samples for shard in self.shards])
        self.num_samples = int(self._starts[-1])
        self.max_bytes = max(shard.max_bytes for shard in self.shards)
        self.split = "+".join(sorted({str(record.get("split") or "") for record in records} - {""}))
        self.left_out = left_out_before(records)
        self.reading = reading
        self.tells_reading = any("mode" in record for record in records)  # older files have it, too
        self.is_raw = all(shard.num_raw == shard.num_samples for shard in self.shards)
        self.is_packed = any(shard.num_packed for shard in self.shards)
        max_label = max(shard.max_label for shard in self.shards)
        self.num_classes = len(self.class_names) if self.class_names else max_label + 1

    def _add(self, path: Path, name: str) -> dict[str, Any]:
        """Open one file, called `name` in messages, and return what its JSON has about its writing."""
        sidecar = read_sidecar(path)
        names = sidecar.class_names if sidecar else None
        if sidecar and (written := how_written(name, sidecar.written, names)):
            self._written.append(written)
        num_classes = len(names) if names else None
        if self.remote:
            shard = self.remote.open_shard(len(self.shards), num_classes)
        else:
            shard = Shard(path, num_classes)
        self.shards.append(shard)
        if sidecar and sidecar.num_samples != shard.num_samples:
            raise ValueError(
                f"{name}: holds {shard.num_samples:,} samples, and {path.name}.json tells of "
                f"{sidecar.num_samples:,}; copy both again, or remove the JSON"
            )
        if names and self.class_names and names != self.class_names:
            raise ValueError(
                f"{name}: its class names differ from those of {self.shards[0].name}; give files with the "
                f"same classes, or write it again with --classes {pasted(self.shards[0].name)}"
            )
        self.class_names = self.class_names or names
        return sidecar.written if sidecar else {}

    @override
    def __repr__(self) -> str:
        files = f" from {len(self.shards):,} files" if len(self.shards) > 1 else ""
        return f"Beton({size_in_words(self)}{files})"

    def __len__(self) -> int:
        return self.num_samples

    def image_sizes(self) -> tuple[int, int, int, int]:
        """Return the extreme sizes of the images.

        Returns:
            A tuple (min height, min width, max height, max width) over all samples, in pixels.
        """
        shards = self.shards
        return (
            min(shard.min_height for shard in shards), min(shard.min_width for shard in shards),
            max(shard.max_height for shard in shards), max(shard.max_width for shard in shards),
        )  # fmt: skip

    def rows(self, indices: np.ndarray) -> SampleTable:
        """Return where samples lie in the files.

        Args:
            indices: The samples, int64 [B] in [0, num_samples).

        Returns:
            A table with one row per sample: file, offset, bytes, size, mode and label.

        Raises:
            IndexError: An index is out of range.
            ValueError: A file was written to since it was opened.
        """
        indices = checked(indices, self.num_samples)
        rows = SampleTable.empty(indices)
        shard_numbers = np.searchsorted(self._starts, indices, "right") - 1
        for number in np.unique(shard_numbers):
            shard, places = self.shards[number], np.flatnonzero(shard_numbers == number)
            shard.check_unchanged()
            local = indices[places] - self._starts[number]
            (images, labels), sizes = shard.table(local), shard.sizes(local)
            shard.check_rows(images, sizes, labels)
            rows.fd[places], rows.offset[places], rows.num_bytes[places] = shard.fd, images["data_ptr"], sizes
            for name in ("height", "width", "mode"):
                getattr(rows, name)[places] = images[name]
            rows.label[places] = labels
        return rows

    def labels(self) -> np.ndarray:
        """Return all labels.

        Returns:
            An int32 array [num_samples], -1 for samples without a label.
        """
        out = np.empty(self.num_samples, np.int32)
        for start, shard in zip(self._starts, self.shards, strict=False):
            for part in chunks(shard.num_samples):
                out[start + part.start : start + part.stop] = shard.table(part)[1]
        return out

    def read(self, index: int) -> bytes:
        """Return the stored bytes of one sample.

        Args:
            index: The sample, in [0, num_samples).

        Returns:
            A JPEG, also of packed coefficients, or height * width * 3 raw values.

        Raises:
            ValueError: They cannot be read whole.
        """
        self.wait(np.array([index]))
        rows = self.rows(np.array([index]))
        num_bytes = int(rows.num_bytes[0])
        try:
            data = os.pread(int(rows.fd[0]), num_bytes, int(rows.offset[0]))
        except OSError as error:
            raise input_error(self.name(index), error) from None
        if len(data) != num_bytes:
            raise ValueError(
                f"{self.name(index)}: {len(data)} of {num_bytes} bytes; the file was truncated, {COPY_AGAIN}"
            )
        if rows.mode[0] != COEFFICIENTS:
            return data
        try:
            return to_jpeg(data, int(rows.height[0]), int(rows.width[0]))
        except BadImage as error:
            raise ValueError(f"{self.name(index)}: {error}") from None

    def wait(self, indices: np.ndarray) -> None:
        """Wait until the bytes of samples are on this machine, which those of local files are.

        Args:
            indices: The samples, int64 [B] in [0, num_samples).

        Raises:
            ValueError: They cannot be fetched.
        """
        if self.remote is not None:
            self.remote.wait(indices)

    def name(self, index: int) -> str:
        """Return a sample in words for messages, such as "train.beton sample 17 (n01440764/a.JPEG)".

        The path in the source is left out if it is not known.

        Args:
            index: The sample.
        """
        number = int(np.searchsorted(self._starts, index, "right")) - 1
        local, shard = int(index - self._starts[number]), self.shards[number]
        try:
            # Read from disk each time, because millions of paths are not worth keeping for this.
            sidecar = read_sidecar(shard.path)
            source = (
                next((p for i, p in enumerate(sidecar.source_paths()) if i == local), "") if sidecar else ""
            )
        except ValueError:
            source = ""
        return f"{shard.name} sample {local}" + (f" ({source})" if source else "")

    def names(self) -> Iterator[str]:
        """Yield each sample's path in its source, or its number where no JSON tells it.

        Yields:
            A name per sample, in their order.
        """
        for start, shard in zip(self._starts.tolist(), self.shards, strict=False):
            sidecar = read_sidecar(shard.path)
            if sidecar is not None and sidecar.packed_paths:
                yield from sidecar.source_paths()
            else:
                yield from map(str, range(start, start + shard.num_samples))

    def digest(self) -> str:
        """Return an identity of headers and tables, and of the samples' checksums where there are some.

        It takes 30 ms for a million samples.
        """
        digest, contents = blake2b(digest_size=16), blake2b(digest_size=16)
        for shard in self.shards:
            digest.update(os.pread(shard.fd, HEADER.itemsize, 0))
            for part in chunks(shard.num_samples):
                for column in (*shard.table(part), shard.sizes(part).astype(np.uint64)):
                    digest.update(column.tobytes())
            if has_checksums(shard):
                contents.update(checksum_bytes(shard))
        are_known = any(map(has_checksums, self.shards))
        return identity(digest.hexdigest(), contents.hexdigest() if are_known else "")

    def stamp(self) -> str:
        """Return the sizes and times of files without checksums; of remote ones, their versions."""
        if self.remote is not None:
            versions = self.remote.versions
        else:
            versions = [written_when(os.fstat(shard.fd)) for shard in self.shards]
        pairs = zip(self.shards, versions, strict=True)
        return " ".join(version for shard, version in pairs if not has_checksums(shard))

    def close(self) -> None:
        """Close the files. What `rows` returned must not be used any more."""
        for shard in self.shards:
            shard.close()
        if self.remote is not None:
            self.remote.close()

    def __del__(self, is_exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        """Close what was left open, and warn of it as Python's own files do."""
        if is_exiting():  # globals may be gone
            return
        if any(shard.fd >= 0 for shard in getattr(self, "shards", ())):
            warnings.warn(
                f"unclosed dataset file {self.paths[0]}", ResourceWarning, stacklevel=2, source=self
            )
            self.close()

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        """Return how a copy opens the files, also in another process."""
        source = (self.remote.address, self.remote.cache) if self.remote else (self._places, None)
        return _opened_again, (*source, self._marks())

    def _marks(self) -> object:
        """Return values that differ between these files and later ones of the same names."""
        return self.class_names, [(shard.file_size, shard.opened_crc) for shard in self.shards]

    def __enter__(self) -> "Beton":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _opened_again(source: "str | list[str]", cache: Cache | None, marks: object) -> Beton:
    data = Beton(source, cache)
    if data._marks() != marks:
        data.close()
        raise ValueError(
            f"{data.paths[0]}: is another dataset file than the one that was copied or pickled; open it again"
        )
    return data


def _common_reading(names: Sequence[str], records: Sequence[dict[str, Any]]) -> Reading:
    """Return the range and the bands that files were written with; raise ValueError for several."""
    found = dict[Reading, str]()
    for name, record in zip(names, records, strict=True):
        try:
            reading = Reading.of(record.get("range"), record.get("bands"))
        except ValueError as error:
            raise ValueError(
                f"{name}.json: not the JSON of a dataset file ({error}); copy it again"
            ) from None
        if reading != PLAIN:  # others may have 8 bits
            found.setdefault(reading, name)
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise ValueError(
            f"{second}: was written with {other.in_words()}, {first} with {one.in_words()}; read them one by "
            "one, or write one again"
        )
    return next(iter(found), PLAIN)
