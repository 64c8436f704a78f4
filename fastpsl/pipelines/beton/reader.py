"""Reading betons: one file or several shards of the stock FFCV format as one list of samples.

Opening checks every pointer, size, mode and label of the tables, so that C code may trust them later. The
tables are memory-mapped; per sample nothing is held, or 4 bytes where the allocation table is not in sample
order (ffcv's writer with several processes). Data are read by pread: a file that shrinks is an error message
then, not a SIGBUS.
"""

import glob
import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np

from fastpsl.pipelines.beton.shard import HEADER, REMEDY, Shard, chunks
from fastpsl.pipelines.beton.shard_set import Written, how_written, missing_shards, set_faults
from fastpsl.pipelines.beton.sidecar import read_sidecar
from fastpsl.pipelines.data.dataset import SampleTable
from fastpsl.pipelines.doing import doing


def shard_paths(source: "str | Path | Sequence[str | Path]") -> list[Path]:
    """The files that `source` names (a file, a glob, or several files), sorted by name; ValueError where
    there are none."""
    if not isinstance(source, str | Path):
        paths = [Path(path) for path in source]
        if not paths:
            raise ValueError("no beton given: give a file, a glob or a list of files")
    elif os.path.lexists(source) or not glob.has_magic(str(source)):
        paths = [Path(source)]
    else:
        paths = [Path(path) for path in glob.glob(str(source))]
        if not paths:
            raise ValueError(
                f"{source}: no file matches; give a beton, or make one with `fastpsl beton write`"
            )
    return sorted(paths)


@final
class Beton:
    """One beton or several shards as one list of samples, in sorted order of the shards' names.

    `source`: a file, a glob, or several files. Everything in the tables is checked here: ValueError (one
    line, with the path and the remedy) when a file is missing, empty, truncated, foreign, out of bounds or
    has labels out of range, or when the JSONs tell of shards of different runs.
    """

    kind = "beton"

    def __init__(self, source: "str | Path | Sequence[str | Path]"):
        self.paths = shard_paths(source)
        self.class_names: list[str] | None = None
        self.shards: list[Shard] = []  # for `verify` and `info`
        self._written: list[Written] = []
        splits = set[str]()
        try:
            name = str(self.paths[0]) + (f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else "")
            with doing(f"{name}: checking its tables", "files", len(self.paths)) as told:
                for path in told.over(self.paths):
                    splits.add(self._add(path))
            if faults := set_faults(self._written):
                raise ValueError(faults[0])
            if isinstance(source, str | Path) and self.paths != [Path(source)]:
                self._warn_of_missing_shards()
        except BaseException:
            self.close()
            raise
        self._starts = np.cumsum([0] + [shard.num_samples for shard in self.shards])
        self.num_samples = int(self._starts[-1])
        self.max_bytes = max(shard.max_bytes for shard in self.shards)
        self.split = "+".join(sorted(splits - {""}))
        self.is_raw = all(shard.num_raw == shard.num_samples for shard in self.shards)
        max_label = max(shard.max_label for shard in self.shards)
        self.num_classes = len(self.class_names) if self.class_names else max_label + 1

    def _warn_of_missing_shards(self) -> None:
        """A glob means the whole set; files that are named one by one may be meant so."""
        missing = missing_shards(self._written)
        if missing:
            more = f" (and {len(missing) - 1:,} more)" if len(missing) > 1 else ""
            warnings.warn(f"{missing[0]}{more}", stacklevel=3)

    def _add(self, path: Path) -> str:
        """The split that its JSON tells of, or ""."""
        sidecar = read_sidecar(path)
        names = sidecar.class_names if sidecar else None
        if sidecar and (written := how_written(path, sidecar.written, names)):
            self._written.append(written)
        shard = Shard(path, len(names) if names else None)
        self.shards.append(shard)
        if sidecar and sidecar.num_samples != shard.num_samples:
            raise ValueError(
                f"{path}: {shard.num_samples:,} samples, its JSON tells of {sidecar.num_samples:,}; remove {path.name}.json"
            )
        if names and self.class_names and names != self.class_names:
            raise ValueError(
                f"{path}: its class names differ from those of {self.paths[0]}; give shards of one data set"
            )
        self.class_names = self.class_names or names
        return str((sidecar.written.get("split") if sidecar else None) or "")

    def __len__(self) -> int:
        return self.num_samples

    def image_sizes(self) -> tuple[int, int, int, int]:
        """(min height, min width, max height, max width) over all samples, px."""
        shards = self.shards
        return (
            min(shard.min_height for shard in shards), min(shard.min_width for shard in shards),
            max(shard.max_height for shard in shards), max(shard.max_width for shard in shards),
        )  # fmt: skip

    def rows(self, indices: np.ndarray) -> SampleTable:
        """Where the samples `indices` (int64 [B], in [0, num_samples)) lie. ValueError when a file has been
        written to since opening."""
        indices = np.asarray(indices, np.int64)
        if len(indices) and not (0 <= indices.min() and indices.max() < self.num_samples):
            raise IndexError(f"sample {indices.min()} .. {indices.max()} of {self.num_samples}")
        rows = SampleTable.empty(indices)
        owners = np.searchsorted(self._starts, indices, "right") - 1
        for owner in np.unique(owners):
            shard, here = self.shards[owner], np.flatnonzero(owners == owner)
            shard.check_unchanged()
            local = indices[here] - self._starts[owner]
            (images, labels), sizes = shard.table(local), shard.sizes(local)
            shard.check_rows(images, sizes, labels)
            rows.fd[here], rows.offset[here], rows.num_bytes[here] = shard.fd, images["data_ptr"], sizes
            rows.height[here], rows.width[here], rows.mode[here] = (
                images["height"],
                images["width"],
                images["mode"],
            )
            rows.label[here] = labels
        return rows

    def labels(self) -> np.ndarray:
        """All labels, int32 [num_samples]; -1 = none."""
        out = np.empty(self.num_samples, np.int32)
        for start, shard in zip(self._starts, self.shards, strict=False):
            for part in chunks(shard.num_samples):
                out[start + part.start : start + part.stop] = shard.table(part)[1]
        return out

    def read(self, index: int) -> bytes:
        """The stored bytes of one sample: a JPEG, or height * width * 3 raw values. ValueError when they
        cannot be read whole."""
        rows = self.rows(np.array([index]))
        wanted = int(rows.num_bytes[0])
        try:
            data = os.pread(int(rows.fd[0]), wanted, int(rows.offset[0]))
        except OSError as error:
            raise ValueError(f"{self.name(index)}: cannot be read ({error.strerror})") from None
        if len(data) != wanted:
            raise ValueError(
                f"{self.name(index)}: {len(data)} of {wanted} bytes; the file was truncated, {REMEDY}"
            )
        return data

    def name(self, index: int) -> str:
        """The sample in words, for messages: "train.beton sample 17 (n01440764/a.JPEG)", without the path
        where none is known."""
        owner = int(np.searchsorted(self._starts, index, "right")) - 1
        local, path = int(index - self._starts[owner]), self.shards[owner].path
        try:
            sidecar = read_sidecar(path)  # again from disk: millions of paths are not worth keeping for this
            source = (
                next((p for i, p in enumerate(sidecar.source_paths()) if i == local), "") if sidecar else ""
            )
        except ValueError:
            source = ""
        return f"{path} sample {local}" + (f" ({source})" if source else "")

    def digest(self) -> str:
        """Hex digest of headers and tables (not of the data): equal for equal betons, 30 ms for a million
        samples."""
        digest = hashlib.blake2b(digest_size=16)
        for shard in self.shards:
            digest.update(os.pread(shard.fd, HEADER.itemsize, 0))
            for part in chunks(shard.num_samples):
                for column in (*shard.table(part), shard.sizes(part).astype(np.uint64)):
                    digest.update(column.tobytes())
        return digest.hexdigest()

    def close(self) -> None:
        """Close the files; rows given out before must not be read any more."""
        for shard in self.shards:
            shard.close()

    def __del__(self) -> None:
        """Closes what was left open, and warns of it as Python's own files do."""
        if any(shard.fd >= 0 for shard in getattr(self, "shards", ())):
            warnings.warn(f"unclosed beton {self.paths[0]}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __enter__(self) -> "Beton":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
