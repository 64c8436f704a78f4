"""A folder of images as a data set of its own: the order and the labels of the beton that would be written of it."""

import os
import warnings
from pathlib import Path
from typing import final

import numpy as np

from fastpsl.pipelines.folder_index import RECORD, folder_index
from fastpsl.pipelines.rows import Rows
from fastpsl.pipelines.sources.folder import image_folder


@final
class Folder:
    """The images below `root`: an ImageFolder tree (a class per folder) or a flat folder without labels.

    Opening lists the folder, and reads every file's header where it has changed since it was opened last (the index is kept in
    the cache folder). Files that cannot be read are bad samples when their turn comes. ValueError (one line) where there is no
    image, none can be read, or the folder changes meanwhile.
    """

    kind = "folder"
    split = ""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(os.path.abspath(root))  # a process may change its folder while it trains
        folder = image_folder(root)
        self._index = folder_index(folder)
        summary = self._index.summary
        if summary.num_broken == summary.num_samples:
            raise ValueError(
                f"{root}: none of {summary.num_samples:,} images can be read ({summary.first_broken})"
            )
        if summary.num_broken:
            warnings.warn(
                f"{root}: {summary.num_broken:,} of {summary.num_samples:,} images cannot be read, the first is "
                f"{summary.first_broken}; each is a bad sample",
                stacklevel=2,
            )
        self.class_names = folder.class_names
        self.num_samples = summary.num_samples
        self.num_classes = len(folder.class_names or ())

    def image_sizes(self) -> tuple[int, int, int, int]:
        """(min height, min width, max height, max width) over all images that can be read, upright, px."""
        return self._index.summary.sizes

    def rows(self, indices: np.ndarray) -> Rows:
        """`indices`: int64 [B] in [0, num_samples)."""
        rows = Rows.empty(indices)
        num = len(rows.indices)
        if num and not (0 <= rows.indices.min() and rows.indices.max() < self.num_samples):
            raise IndexError(f"sample {rows.indices.min()} .. {rows.indices.max()} of {self.num_samples}")
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
        """int32 [num_samples]; -1 = none."""
        return np.ascontiguousarray(self._index.records["label"])

    def name(self, index: int) -> str:
        """The file's path."""
        return os.path.join(self.root, self._name(self._index.records[index]))

    def digest(self) -> str:
        """Of all names and sizes in bytes: equal for a copy of the folder, whatever its place and its dates."""
        return self._index.digest

    def close(self) -> None:
        """Gives the index back; rows given out before stay as they are."""
        self._index.records, self._index.names = np.empty(0, RECORD), np.empty(0, np.uint8)

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
