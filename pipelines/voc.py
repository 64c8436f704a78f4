"""PASCAL VOC as its archives lie on disk: pictures with boxes, or with class masks. Own data in its layout too (classes.txt).

Opening reads every annotation of the sets and checks it, so that nothing wrong is met after hours of training: boxes always, masks
until they were found good once (voc_check.py).
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np

from fastpsl.pipelines.folder import Folder
from fastpsl.pipelines.rows import MODE_FILE, Rows
from fastpsl.pipelines.voc_annotations import Objects, read_objects
from fastpsl.pipelines.voc_layout import CLASSES, ImageSet, Needs, class_names, devkit, image_set
from fastpsl.pipelines.voc_masks import read_mask
from fastpsl.pipelines.workers import map_in_order

__all__ = ["CLASSES", "VOC", "Needs", "Objects"]

_VERSION = "voc-v1"  # a new name whenever the digest's parts change
_THREADS = 16  # storage far away answers slowly, and to many at once


@final
class VOC:
    """The pictures of `sets`, one after another, such as ("2007_trainval", "2012_trainval").

    root: VOCdevkit, or the folder that holds it. needs: "boxes" (lists of ImageSets/Main; every picture has an object) or "masks"
    (ImageSets/Segmentation). ValueError (one line, which names the file) where something is missing, broken or contradicts itself.
    """

    kind = "folder"

    def __init__(self, root: str | Path, sets: Sequence[str], needs: Needs, sbd: Path | None = None) -> None:
        assert sets and needs in ("boxes", "masks"), (sets, needs)
        folder = devkit(Path(root).absolute())  # a process may change its folder while it trains
        self.class_names: list[str] | None = class_names(folder)
        self.num_classes = len(self.class_names)
        self.split = "+".join(sets)
        parts = [image_set(folder, name, needs) for name in sets]
        self._ids = [name for part in parts for name in part.ids]
        self.num_samples = len(self._ids)
        rows = [_rows(part) for part in parts]
        columns = [np.concatenate(column) for column in zip(*rows, strict=True)]
        self._rows = Rows(*columns)._replace(indices=np.arange(self.num_samples))
        ending = ("Annotations", "xml") if needs == "boxes" else ("SegmentationClass", "png")
        self._files = [part.folder / ending[0] / f"{name}.{ending[1]}" for part in parts for name in part.ids]
        self._objects: list[Objects] = []
        self._digest = self._read(needs)

    def _read(self, needs: Needs) -> str:
        """Reads and checks all annotations; their digest."""
        assert self.class_names is not None
        numbers = {name: i for i, name in enumerate(self.class_names)}
        digest = hashlib.blake2b(f"{_VERSION} {needs} {self.class_names}".encode(), digest_size=16)

        def read(index: int) -> tuple[bytes, Objects | None]:
            path, size = self._files[index], self._size(index)
            data = path.read_bytes()
            if needs == "boxes":
                return data, read_objects(path, data, numbers, size)
            read_mask(path, data, self.num_classes, size)
            return data, None

        for index, (data, objects) in map_in_order(read, range(self.num_samples), _THREADS, "voc"):
            picture = f"{self._ids[index]} {self._size(index)} {self._rows.num_bytes[index]} {len(data)} "
            digest.update(picture.encode() + data)
            if objects is not None:
                self._objects.append(objects)
        return digest.hexdigest()

    def _size(self, index: int) -> tuple[int, int]:
        return int(self._rows.height[index]), int(self._rows.width[index])

    def objects(self, index: int) -> Objects:
        """What is annotated on a picture."""
        assert self._objects, "opened for masks"
        return self._objects[index]

    def mask(self, index: int) -> np.ndarray:
        """uint8 [h, w]: the classes' numbers from 1, 0 background, 255 void; of the upright picture's size."""
        assert not self._objects, "opened for boxes"
        path = self._files[index]
        return read_mask(path, path.read_bytes(), self.num_classes, self._size(index))

    def targets(self) -> np.ndarray:
        """int8 [num_samples, num_classes]: 1 = an object of the class is there, 0 = none, -1 = only difficult ones."""
        targets = np.zeros((self.num_samples, self.num_classes), np.int8)
        for index in range(self.num_samples):
            objects = self.objects(index)
            targets[index, objects.labels[objects.difficult]] = -1
            targets[index, objects.labels[~objects.difficult]] = 1
        return targets

    def image_id(self, index: int) -> str:
        """As the lists name it, such as 000005."""
        return self._ids[index]

    def image_sizes(self) -> tuple[int, int, int, int]:
        """(min height, min width, max height, max width) over all pictures, upright, px."""
        height, width = self._rows.height, self._rows.width
        return int(height.min()), int(width.min()), int(height.max()), int(width.max())

    def rows(self, indices: np.ndarray) -> Rows:
        """`indices`: int64 [B] in [0, num_samples)."""
        asked = np.asarray(indices, np.int64)
        if len(asked) and not (0 <= asked.min() and asked.max() < self.num_samples):
            raise IndexError(f"sample {asked.min()} .. {asked.max()} of {self.num_samples}")
        return self._rows.part(asked)

    def labels(self) -> np.ndarray:
        """int32 [num_samples], all -1: a picture has several classes (`targets`)."""
        return np.full(self.num_samples, -1, np.int32)

    def name(self, index: int) -> str:
        """The picture's path."""
        return str(self._rows.path[index])

    def digest(self) -> str:
        """Of classes, ids, pictures (sizes in px and bytes) and annotations: equal for a copy, whatever its place and its dates."""
        return self._digest

    def close(self) -> None:
        """Nothing stays open."""

    def __enter__(self) -> "VOC":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _rows(part: ImageSet) -> Rows:
    """Where the pictures of a set lie. ValueError where some are missing, or cannot be read."""
    place = part.folder / "JPEGImages"
    with Folder(place) as pictures:
        all_rows = pictures.rows(np.arange(pictures.num_samples))
    number = {Path(path).name: i for i, path in enumerate(all_rows.path)}
    names = [f"{name}.jpg" for name in part.ids]
    missing = [name for name in names if name not in number]
    if missing:
        raise ValueError(
            f"{place}: {len(missing):,} of the {len(names):,} pictures that {part.list_file} names are missing, "
            f"the first is {missing[0]}; {part.remedy}"
        )
    rows = all_rows.part(np.array([number[name] for name in names]))._replace(label=np.full(len(names), -1))
    broken = (rows.height * rows.width == 1) & (rows.mode == MODE_FILE)
    if broken.any():
        raise ValueError(f"{rows.path[broken.argmax()]}: cannot be read as a picture; {part.remedy}")
    return rows
