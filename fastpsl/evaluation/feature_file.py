"""Read and write the files of features.

F.npy has sample i in row i, F.json describes it, and F-labels.npy has the labels, if there are any.
Rows are written with pwrite and not through a memory map, because a full disk then raises an error instead of
killing the process.
"""

import contextlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from fastpsl.console.progress import operation
from fastpsl.engine.distributed import World, gather_objects, share
from fastpsl.files.atomic import (
    PartialFile,
    Uncopyable,
    partial_path,
    remove_leftovers,
    write_all,
    write_atomically,
)
from fastpsl.files.json_records import COUNT, COUNTS, TEXT, WHOLE, Form, NoRecord, maybe
from fastpsl.files.system_errors import input_errors, output_errors
from fastpsl.files.untrusted import map_npy, read_npy

FORMAT = 1
_ROWS_AT_A_TIME = 4096
_RECORD = Form("F.json", {
    "format": WHOLE, "digest": TEXT, "shape": COUNTS, "dtype": TEXT, "block": TEXT, "size_px": COUNT,
    "backbone": maybe(TEXT), "labels": maybe(TEXT), "bad": COUNTS,
})  # fmt: skip
_PROGRESS = Form("progress", {"digest": TEXT, "num_rows": COUNT, "bad": COUNTS})


@dataclass(frozen=True)
class FeatureFile:
    """A finished file of features, F.npy at `path`, with the record in F.json: digest, shape, dtype, …"""

    path: Path
    record: dict[str, Any]

    @override
    def __str__(self) -> str:
        record, (num, channels) = self.record, self.record["shape"]
        labels = f", labels in {record['labels']}" if record["labels"] else ""
        bad = f", {len(record['bad']):,} bad" if record["bad"] else ""
        made_of = f"{record['block']} of {record['backbone']} at {record['size_px']} px"
        return f"{self.path}: {record['dtype']} [{num:,}, {channels:,}], {made_of}{labels}{bad}"

    def features(self) -> np.ndarray:
        """Return the features [N, C] as a memory map.

        The rows of samples that could not be decoded are NaN; record["bad"] lists them.
        """
        return map_npy(self.path)

    def good(self) -> np.ndarray:
        """Return the samples that could be decoded, int64."""
        return np.setdiff1d(np.arange(self.record["shape"][0]), self.record["bad"])

    def of_length_1(self, samples: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        """Return the features of some samples, scaled to length 1, float16 [n, C] on a device.

        Lengths are divided out in float32, because half precision does not hold all of them. Samples that
        could not be decoded have NaN.
        """
        features, parts = self.features(), range(0, len(samples), _ROWS_AT_A_TIME)
        rows = torch.empty(len(samples), features.shape[1], dtype=torch.float16, device=device)
        with operation(f"reading {self.path}", "images", len(samples)) as progress:
            for start in progress.track(parts, _ROWS_AT_A_TIME):
                part = slice(start, start + _ROWS_AT_A_TIME)
                values = features[samples[part]].astype(np.float32)
                rows[part] = F.normalize(torch.from_numpy(values).to(device)).half()
        return rows

    def labels(self) -> np.ndarray | None:
        """Return the labels, int32 [N] with -1 for none, or None if no sample has one."""
        name = self.record["labels"]
        if name is None:
            return None
        path = self.path.with_name(name)
        try:
            return read_npy(path, 8 * int(self.record["shape"][0]))
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(
                f"{path} cannot be read ({' '.join(str(error).split())}): compute the features again"
            ) from None


def read_features(path: Path) -> FeatureFile | None:
    """Return the features at `path` (F.npy), or None if F.npy or F.json is missing or incomplete."""
    with input_errors(path):
        try:
            record = {"backbone": None, "labels": None} | _RECORD.read(record_path(path))
            shape = map_npy(path).shape
        except (FileNotFoundError, ValueError, EOFError):
            return None
    has_its_labels = record["labels"] in (None, labels_path(path).name)
    is_its = record["format"] == FORMAT and record["shape"] == list(shape) and len(shape) == 2
    is_whole = is_its and has_its_labels and all(sample < shape[0] for sample in record["bad"])
    return FeatureFile(path, record) if is_whole else None


def record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def labels_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}-labels.npy")


class PartialFeatures(Uncopyable):
    """A .npy file that all ranks write under a temporary name, with a note of the rows that are complete.

    `wanted` describes the features, with their shape and dtype, and `digest` is its digest. The first
    `num_rows` rows are complete. `bad` has the samples that could not be decoded, this rank's until `save`.
    """

    def __init__(self, path: Path, digest: str, wanted: dict[str, Any], world: World):
        self.path, self.digest, self.world = path, digest, world
        self.partial, self.progress = partial_path(path), path.with_name(f".{path.name}.progress")
        self.dtype = np.dtype(wanted["dtype"]).newbyteorder("<")
        header = io.BytesIO()
        npy_header = {"descr": self.dtype.str, "fortran_order": False, "shape": tuple(wanted["shape"])}
        np.lib.format.write_array_header_1_0(header, npy_header)
        self._header = header.getvalue()
        self._num_rows, channels = wanted["shape"]
        self._row_bytes = channels * self.dtype.itemsize
        self.fd, self.num_rows, self.bad = -1, 0, set[int]()
        with output_errors(path):
            if world.rank == 0:
                try:
                    self._begin()
                except BaseException:
                    self.close()  # and with it the lock, which this process would meet again
                    raise
            self.num_rows, self.bad = share(world, (self.num_rows, self.bad))
            if world.rank != 0:
                self.fd = os.open(self.partial, os.O_RDWR | os.O_CLOEXEC)

    def _begin(self) -> None:
        """Continue with an existing file of the same features, or else start a new one."""
        self.fd = PartialFile(self.path, keep=True).fd
        remove_leftovers(self.path.parent, self.path.name, self.progress.name)
        size = len(self._header) + self._num_rows * self._row_bytes
        with contextlib.suppress(FileNotFoundError, NoRecord):
            progress = _PROGRESS.read(self.progress)
            is_its = progress["digest"] == self.digest and os.fstat(self.fd).st_size == size
            if is_its and max([progress["num_rows"], *progress["bad"]]) <= self._num_rows:
                self.num_rows, self.bad = progress["num_rows"], set(progress["bad"])
        if self.num_rows == 0:
            self.progress.unlink(missing_ok=True)
            os.ftruncate(self.fd, 0)
            os.posix_fallocate(self.fd, 0, size)  # so that a disk that is too small raises an error now
            write_all(self.fd, self._header, 0)

    def write(self, first_row: int, rows: np.ndarray) -> None:
        """Write rows [B, C] from `first_row` on; rows past the file's last one are padding and dropped."""
        rows = np.ascontiguousarray(rows[: max(0, self._num_rows - first_row)], self.dtype)
        offset = len(self._header) + first_row * self._row_bytes
        with output_errors(self.path):
            write_all(self.fd, rows.view(np.uint8).reshape(-1).data, offset)

    def save(self, num_rows: int) -> None:
        """Flush the file and note that `num_rows` rows are complete; all ranks call it at the same step."""
        with output_errors(self.path):
            os.fsync(self.fd)
        self.bad, self.num_rows = set[int]().union(*gather_objects(self.world, self.bad)), num_rows
        if self.world.rank == 0:
            progress = {"digest": self.digest, "num_rows": num_rows, "bad": sorted(self.bad)}
            with output_errors(self.path):
                write_atomically(self.progress, json.dumps(progress).encode())

    def publish(self, record: dict[str, Any], labels: np.ndarray | None) -> None:
        """Give the file its final name, with record and labels (int [N]) beside it; on rank 0 alone."""
        # The old record goes first, because features without a record count as unknown.
        record_path(self.path).unlink(missing_ok=True)
        if labels is not None:
            data = io.BytesIO()
            np.save(data, labels.astype(np.int32))
            write_atomically(labels_path(self.path), data.getbuffer())
        os.replace(self.partial, self.path)
        self.progress.unlink(missing_ok=True)
        write_atomically(record_path(self.path), (json.dumps(record, indent=1) + "\n").encode())

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1
