"""PASCAL VOC in the layout of its archives, or other data in that layout: images with boxes or class masks.

Opening reads every annotation of the sets, so that faults appear before training and not hours into it. XML
files are checked each time (16,551 take seconds), the pixels of masks once (checked_once.py).
"""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np

from fastpsl.console.progress import operation
from fastpsl.files.caches import checked_once
from fastpsl.files.workers import default_num_threads, map_in_order
from fastpsl.pipelines.data.dataset import BadImage, SampleTable
from fastpsl.pipelines.data.image_file import upright_size
from fastpsl.pipelines.data.image_files import Folder
from fastpsl.pipelines.voc.annotations import Objects, read_objects
from fastpsl.pipelines.voc.layout import (
    CLASSES,
    ImageSet,
    Needs,
    check_disjoint,
    class_names,
    devkit,
    image_set,
    sbd_set,
)
from fastpsl.pipelines.voc.masks import read_mask

__all__ = ["CLASSES", "VOC", "Needs", "Objects"]

_VERSION = "voc-v1"  # a new name whenever the parts of the digest change
_THREADS = 16  # remote storage answers slowly, but many requests at once


@final
class VOC:
    """The images of `sets`, one set after another.

    Args:
        root: VOCdevkit, or the folder that holds it.
        sets: Names such as ("2007_trainval", "2012_trainval").
        needs: "boxes" (lists of ImageSets/Main; every image has an object) or "masks"
            (ImageSets/Segmentation).
        sbd: SBD's folder; its images follow those of 2012_train (layout.sbd_set).

    Raises:
        ValueError: A file is missing or broken, or contradicts another. The message is one line and names the
            file.
    """

    kind = "folder"

    def __init__(
        self, root: str | Path, sets: Sequence[str], needs: Needs, sbd: str | Path | None = None
    ) -> None:
        assert sets and needs in ("boxes", "masks"), (sets, needs)
        # Absolute, because a process may change its working folder while it trains.
        folder = devkit(Path(root).absolute())
        parts = [image_set(folder, name, needs) for name in sets]
        self.split = "+".join(sets)
        if sbd is not None:
            if needs != "masks" or "2012_train" not in sets:
                raise ValueError(
                    f"{sbd}: SBD adds masks to 2012_train, and the sets here are {self.split} with {needs}"
                )
            parts.append(sbd_set(Path(sbd).absolute(), folder))
            self.split += "+sbd"
        check_disjoint(parts)
        self.class_names: list[str] | None = class_names(folder)
        self.num_classes = len(self.class_names)
        self._ids = [name for part in parts for name in part.ids]
        self._files = [path for part in parts for path in part.annotation_files()]
        self.num_samples = len(self._ids)
        columns = zip(*(_rows(part) for part in parts), strict=True)
        self._rows = SampleTable(*(np.concatenate(column) for column in columns))._replace(
            indices=np.arange(self.num_samples)
        )
        self._objects: list[Objects] | None = [] if needs == "boxes" else None
        self._digest = self._read()
        if needs == "masks":
            checked_once(self._digest, f"{self.num_samples:,} masks of {folder}", self._check_masks)

    def _read(self) -> str:
        """Read all annotations, keep the objects where boxes are needed, and return the digest."""
        assert self.class_names is not None
        numbers = {name: i for i, name in enumerate(self.class_names)}
        digest = hashlib.blake2b(f"{_VERSION} {self.class_names}".encode(), digest_size=16)

        def read(index: int) -> tuple[bytes, Objects | None]:
            path = self._files[index]
            data = _bytes(path)
            has_boxes = self._objects is not None
            return data, read_objects(path, data, numbers, self._size(index)) if has_boxes else None

        annotations = map_in_order(read, range(self.num_samples), _THREADS, "voc")
        with operation("VOC: reading annotations", "images", self.num_samples) as progress:
            for index, (data, objects) in progress.track(annotations):
                line = f"{self._ids[index]} {self._size(index)} {self._rows.num_bytes[index]} {len(data)} "
                digest.update(line.encode() + data)
                if self._objects is not None and objects is not None:
                    self._objects.append(objects)
        return digest.hexdigest()

    def _check_masks(self) -> None:
        masks = map_in_order(self.mask, range(self.num_samples), default_num_threads(), "masks")
        with operation("VOC: checking masks", "images", self.num_samples) as progress:
            for _ in progress.track(masks):
                pass

    def _size(self, index: int) -> tuple[int, int]:
        return int(self._rows.height[index]), int(self._rows.width[index])

    def objects(self, index: int) -> Objects:
        """Return the annotated objects of an image."""
        assert self._objects is not None, "opened for masks"
        return self._objects[index]

    def mask(self, index: int) -> np.ndarray:
        """Return class numbers from 1, 0 background, 255 void: uint8 [h, w], of the upright image's size."""
        assert self._objects is None, "opened for boxes"
        path = self._files[index]
        return read_mask(path, _bytes(path), self.num_classes, self._size(index))

    def targets(self) -> np.ndarray:
        """Return int8 [num_samples, num_classes]: 1 with an object, 0 without, -1 if all are difficult."""
        targets = np.zeros((self.num_samples, self.num_classes), np.int8)
        for index in range(self.num_samples):
            objects = self.objects(index)
            targets[index, objects.labels[objects.difficult]] = -1
            targets[index, objects.labels[~objects.difficult]] = 1
        return targets

    def image_id(self, index: int) -> str:
        """Return the image's name in the lists, such as 000005."""
        return self._ids[index]

    def image_sizes(self) -> tuple[int, int, int, int]:
        """Return (min height, min width, max height, max width) over all images, upright, in px."""
        height, width = self._rows.height, self._rows.width
        return int(height.min()), int(width.min()), int(height.max()), int(width.max())

    def rows(self, indices: np.ndarray) -> SampleTable:
        """Return the table of the samples `indices`, int64 [B] in [0, num_samples)."""
        positions = np.asarray(indices, np.int64)
        if len(positions) and not (0 <= positions.min() and positions.max() < self.num_samples):
            raise IndexError(f"sample {positions.min()} .. {positions.max()} of {self.num_samples}")
        return self._rows.part(positions)

    def wait(self, indices: np.ndarray) -> None:
        """Do nothing, since all is on this machine."""

    def labels(self) -> np.ndarray:
        """Return int32 [num_samples], all -1, because an image has several classes (`targets`)."""
        return np.full(self.num_samples, -1, np.int32)

    def name(self, index: int) -> str:
        """Return the image's path."""
        return str(self._rows.path[index])

    def digest(self) -> str:
        """Return a digest of classes, ids, image sizes (px and bytes) and annotations.

        It is equal for a copy of the files, whatever its place and dates.
        """
        return self._digest

    def close(self) -> None:
        """Do nothing, because no file stays open."""

    def __enter__(self) -> "VOC":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_train_and_test(
    root: str | Path,
    train: Sequence[str],
    test: Sequence[str],
    needs: Needs,
    sbd: Path | None = None,
) -> tuple[VOC, VOC]:
    """Open the sets to learn from (with SBD, if given) and the sets to score.

    Raises:
        ValueError: An image is in both.
    """
    both = VOC(root, train, needs, sbd), VOC(root, test, needs)
    learned, scored = ({data.image_id(i) for i in range(data.num_samples)} for data in both)
    if shared := sorted(learned & scored):
        raise ValueError(
            f"{root}: {len(shared):,} images are learned from ({' '.join(train)}) "
            f"and scored ({' '.join(test)}), the first is {shared[0]}: "
            "take them out of one list in ImageSets"
        )
    return both


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); extract it again") from None


def _rows(part: ImageSet) -> SampleTable:
    """Return where the images of a set lie; raise ValueError where one cannot be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warnings may concern images in no list
        images = Folder(part.images)
    with images:
        numbers = {Path(images.name(i)).name: i for i in range(images.num_samples)}
        rows = images.rows(np.array([numbers[name] for name in part.image_names()]))
    # The index gives unreadable images this size.
    for i in np.flatnonzero((rows.height == 1) & (rows.width == 1)):
        try:
            upright_size(rows.path[i])
        except BadImage as error:
            raise ValueError(f"{rows.path[i]}: cannot be read as an image ({error}); {part.remedy}") from None
    rows.label[:] = -1
    return rows
