"""Image files as a data set: a folder or a list, in the order and with the labels that a packed file has."""

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, final

import numpy as np

from fastpsl.pipelines.data.dataset import SampleTable, out_of_range
from fastpsl.pipelines.data.header_index import RECORD, Files, folder_index
from fastpsl.pipelines.sources.folder import image_folder
from fastpsl.pipelines.sources.listed import image_list

Opened = TypeVar("Opened", bound="ImageFiles")


class ImageFiles:
    """A data set of image files with an index of their headers: the common part of folders and lists.

    Opening looks at every file, and reads the headers where one has changed since the last time (the index is
    in the cache folder). Files that cannot be read are bad samples.

    Args:
        files: The names, labels and classes.
        origin: The folder or the list that was opened, for messages.
        root: The folder that the names are relative to.

    Raises:
        ValueError: No file can be read, or the files change meanwhile. The message is one line.
    """

    kind = "folder"  # a decoder opens each file by its path
    split = ""

    def __init__(self, files: Files, origin: Path, root: Path) -> None:
        # Absolute, because a process may change its working folder while it trains.
        self.root = Path(os.path.abspath(root))
        self._index = folder_index(files, origin)
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

    def image_sizes(self) -> tuple[int, int, int, int]:
        """Return (min height, min width, max height, max width) over all readable images, upright, in px."""
        return self._index.summary.sizes

    def rows(self, indices: np.ndarray) -> SampleTable:
        """Return the table of the samples `indices`, int64 [B] in [0, num_samples)."""
        rows = SampleTable.empty(indices)
        num = len(rows.indices)
        if num and not (0 <= rows.indices.min() and rows.indices.max() < self.num_samples):
            raise out_of_range(rows.indices, self.num_samples)
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

    def wait(self, indices: np.ndarray) -> None:
        """Do nothing, since all is on this machine."""

    def labels(self) -> np.ndarray:
        """Return all labels, int32 [num_samples]; -1 for none."""
        return np.ascontiguousarray(self._index.records["label"])

    def name(self, index: int) -> str:
        """Return the file's path."""
        return os.path.join(self.root, self._name(self._index.records[index]))

    def digest(self) -> str:
        """Return a digest of all names, labels and sizes in bytes, which a copy of the files shares."""
        return self._index.digest

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

    def __enter__(self: Opened) -> Opened:  # noqa: PYI019  (typing.Self needs Python 3.11)
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@final
class Folder(ImageFiles):
    """The images below `root`: an ImageFolder tree (a class per folder), or a flat folder without labels."""

    def __init__(self, root: str | Path) -> None:
        files = image_folder(root)
        if files.hint:
            warnings.warn(f"{root}: {files.hint}", stacklevel=2)
        super().__init__(files, Path(root), Path(root))


@final
class Listed(ImageFiles):
    """The images that the file `path` names (`sources.listed.image_list`), with its labels."""

    def __init__(self, path: str | Path) -> None:
        files = image_list(path)
        super().__init__(files, Path(path), files.root)
