"""PASCAL VOC in the layout of its archives, or other data in that layout: images with boxes or class masks.

Opening reads every annotation of the sets, so that faults appear before training and not hours into it. XML
files are checked each time (16,551 take seconds), the pixels of masks once (caches.py).

VOCdevkit/VOC2007/{JPEGImages,Annotations,ImageSets/{Main,Segmentation},SegmentationClass}   and VOC2012 alike
VOCdevkit/classes.txt                                              own class names, a line each
benchmark_RELEASE/dataset/{img/*.jpg,cls/*.mat,train.txt,val.txt}  SBD (Hariharan et al., 2011)
"""

import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, final

import numpy as np
from typing_extensions import override

from fastpsl.console.progress import operation
from fastpsl.console.words import cut
from fastpsl.files.caches import checked_once
from fastpsl.files.digest import blake2b
from fastpsl.files.json_records import read_bytes
from fastpsl.files.system_errors import input_errors, raise_of_the_system
from fastpsl.files.workers import default_num_threads, map_in_order
from fastpsl.pipelines.datasets.open_folder import Folder
from fastpsl.pipelines.datasets.voc.annotations import Objects, read_mask, read_objects
from fastpsl.pipelines.image.image_file import upright_size
from fastpsl.pipelines.interface.dataset import BadImage, Local, SampleTable, checked
from fastpsl.pipelines.readers.text_lists import lines_of, require_text

Needs = Literal["boxes", "masks"]

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person",
    "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CLASSES_FILE = "classes.txt"
MAX_CLASSES = 254  # 0 is the background of masks, 255 void
_LISTS = {"boxes": "Main", "masks": "Segmentation"}
_ANNOTATIONS = {"boxes": ("Annotations", ".xml"), "masks": ("SegmentationClass", ".png")}
_ARCHIVES = {
    ("2007", False): "VOCtrainval_06-Nov-2007.tar",
    ("2007", True): "VOCtest_06-Nov-2007.tar",
    ("2012", False): "VOCtrainval_11-May-2012.tar",
}


class ImageSet(NamedTuple):
    """The images of a list and their annotations: images/ID.jpg, annotations/ID.xml, .png or .mat."""

    ids: list[str]
    images: Path
    annotations: Path
    ending: str
    list_file: Path  # for SBD, which has two lists, their folder
    remedy: str  # the way to get missing files

    def image_names(self) -> list[str]:
        return [f"{name}.jpg" for name in self.ids]

    def annotation_files(self) -> list[Path]:
        return [self.annotations / f"{name}{self.ending}" for name in self.ids]


def devkit(root: Path) -> Path:
    """Return the folder with VOC2007, VOC2012, ...: `root`, or VOCdevkit in it."""
    for folder in (root, root / "VOCdevkit"):
        if any(_is_year(name) for name in _names(folder)):
            return folder
    if _is_year(root.name) and (root / "JPEGImages").is_dir():
        raise ValueError(f"{root}: is one year of PASCAL VOC; give the folder that holds it, {root.parent}")
    raise ValueError(
        f"{root}: no folder of PASCAL VOC, because neither it nor a VOCdevkit in it holds VOC2007 or "
        f"VOC2012; give VOCdevkit"
    )


def _is_year(name: str) -> bool:
    return re.fullmatch(r"VOC\d{4}", name) is not None


def _names(folder: Path) -> list[str]:
    """Return the names in a folder, sorted; none where there is no folder."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise_of_the_system(folder, error)
        return []


def class_names(folder: Path) -> list[str]:
    """Return VOC's class names, or those of classes.txt."""
    path = folder / CLASSES_FILE
    if not path.exists():
        return list(CLASSES)
    names = _lines(path)
    if not 1 <= len(names) <= MAX_CLASSES:
        raise ValueError(f"{path}: names {len(names)} classes; give 1 to {MAX_CLASSES}, one name per line")
    if repeated := _first_repeated(names):
        raise ValueError(f"{path}: names {repeated!r} twice; name each class once")
    return names


def image_set(folder: Path, name: str, needs: Needs) -> ImageSet:
    """Return the set `name`, such as "2007_trainval", below the VOCdevkit `folder`."""
    if not re.fullmatch(r"\d{4}_\w+", name):
        raise ValueError(f"{name!r} is no set of PASCAL VOC; give a year and a list, such as 2007_trainval")
    year, _, split = name.partition("_")
    year_folder = folder / f"VOC{year}"
    archive = _ARCHIVES.get((year, split == "test"))
    remedy = f"extract the whole of {archive}" if archive else "copy the whole folder"
    if not year_folder.is_dir():
        years = ", ".join(filter(_is_year, _names(folder)))
        raise ValueError(f"{folder}: holds {years} and no VOC{year}, which {name} is of; {remedy}")
    annotations, ending = _ANNOTATIONS[needs]
    for part in ("JPEGImages", annotations, "ImageSets"):
        if not (year_folder / part).is_dir():
            raise ValueError(f"{year_folder}: holds no {part}, which {name} needs; {remedy}")
    lists = year_folder / "ImageSets" / _LISTS[needs]
    list_file = lists / f"{split}.txt"
    if not list_file.is_file():
        splits = ", ".join(Path(file).stem for file in _names(lists) if "_" not in file) or "none"
        raise ValueError(f"{list_file}: no such list (those of {lists.name}: {splits}); {remedy}")
    images = year_folder / "JPEGImages"
    return ImageSet(_read_ids(list_file), images, year_folder / annotations, ending, list_file, remedy)


def sbd_set(root: Path, folder: Path) -> ImageSet:
    """Return SBD's images that VOC2012's lists train and val do not name.

    Together with train they are the 10,582 images that segmentation is usually trained on. `root` is SBD's
    folder, `folder` VOCdevkit.
    """
    candidates = (root, root / "dataset", root / "benchmark_RELEASE" / "dataset")
    sbd_folder = next((path for path in candidates if (path / "cls").is_dir()), None)
    if sbd_folder is None:
        raise ValueError(
            f"{root}: no SBD, which holds dataset/cls/*.mat and dataset/img/*.jpg; "
            f"give benchmark_RELEASE of its archive benchmark.tgz"
        )
    remedy = "extract the whole of benchmark.tgz"
    ids: list[str] = []
    for list_file in (sbd_folder / "train.txt", sbd_folder / "val.txt"):
        if not list_file.is_file() or not (sbd_folder / "img").is_dir():
            raise ValueError(
                f"{sbd_folder}: holds no {'img' if list_file.is_file() else list_file.name} of SBD; {remedy}"
            )
        ids += _read_ids(list_file)
    lists = folder / "VOC2012" / "ImageSets" / "Segmentation"
    voc_ids = {name for split in ("train", "val") for name in _read_ids(lists / f"{split}.txt")}
    new_ids = [name for name in dict.fromkeys(ids) if name not in voc_ids]
    return ImageSet(new_ids, sbd_folder / "img", sbd_folder / "cls", ".mat", sbd_folder, remedy)


def _check_disjoint(parts: Sequence[ImageSet]) -> None:
    """Raise ValueError where two sets share an image."""
    lists: dict[tuple[Path, str], Path] = {}
    for part in parts:
        for name in part.ids:
            other = lists.setdefault((part.images, name), part.list_file)
            if other is not part.list_file:
                raise ValueError(
                    f"{part.list_file}: names {name}, as {other} does; give sets without common images"
                )


def _check_files(part: ImageSet) -> None:
    for kind, folder, names in (
        ("images", part.images, part.image_names()),
        ("annotations", part.annotations, [path.name for path in part.annotation_files()]),
    ):
        files = set(_names(folder))
        missing = [name for name in names if name not in files]
        if missing:
            raise ValueError(
                f"{folder}: {len(missing):,} of the {len(names):,} {kind} "
                f"that {part.list_file} names are missing, the first is {cut(missing[0])}; {part.remedy}"
            )


def _read_ids(list_file: Path) -> list[str]:
    ids = _lines(list_file)
    if not ids:
        raise ValueError(f"{list_file}: names no image; give one id per line, such as 000005")
    for line in ids:
        if len(line.split()) != 1 or "/" in line:
            raise ValueError(f"{list_file}: the line {line!r} is no id; give one id per line, such as 000005")
    if repeated := _first_repeated(ids):
        raise ValueError(f"{list_file}: names {repeated} twice; name each image once")
    return ids


def _first_repeated(names: list[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _lines(path: Path) -> list[str]:
    """Return the lines of a file that are not empty."""
    try:
        lines = [line for line in map(str.strip, lines_of(path)) if line]
    except OSError as error:
        raise_of_the_system(path, error)
        raise ValueError(f"{path}: cannot be read as text ({error}); extract it again") from None
    require_text(path, "".join(lines))
    return lines


_VERSION = "voc-v1"  # a new name whenever the parts of the digest change
_THREADS = 16  # remote storage answers slowly, but many requests at once


@final
class VOC(Local):
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
        for part in parts:
            _check_files(part)
        _check_disjoint(parts)
        self.class_names: list[str] | None = class_names(folder)
        self.num_classes = len(self.class_names)
        self._ids = [name for part in parts for name in part.ids]
        self._files = [path for part in parts for path in part.annotation_files()]
        self.num_samples = len(self._ids)
        tables, stamps = zip(*map(_rows, parts), strict=True)
        columns = zip(*(table[:-1] for table in tables), strict=True)
        self._stamp = " ".join(stamps)
        self._rows = SampleTable._make([*map(np.concatenate, columns), self.reading])._replace(
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
        digest = blake2b(f"{_VERSION} {self.class_names}".encode(), digest_size=16)

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
        return self._rows.part(checked(indices, self.num_samples))

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

    @override
    def stamp(self) -> str:
        """Return the stamps of the folders of images; `digest` covers the annotations' bytes."""
        return self._stamp


def open_train_and_test(
    root: str | Path, train: Sequence[str], test: Sequence[str], needs: Needs, sbd: Path | None = None
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
        return read_bytes(path)
    except OSError as error:
        raise_of_the_system(path, error)
        raise ValueError(f"{path}: cannot be read ({error.strerror}); extract it again") from None


def _rows(part: ImageSet) -> tuple[SampleTable, str]:
    """Return where the images of a set lie, and their folder's stamp; ValueError where one is unreadable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warnings may concern images in no list
        images = Folder(part.images)
    with images:
        stamp = images.stamp()
        numbers = {Path(images.name(i)).name: i for i in range(images.num_samples)}
        rows = images.rows(np.array([numbers[name] for name in part.image_names()]))
    # The index gives unreadable images this size.
    for i in np.flatnonzero((rows.height == 1) & (rows.width == 1)):
        try:
            with input_errors(rows.path[i]):
                upright_size(rows.path[i])
        except BadImage as error:
            raise ValueError(f"{rows.path[i]}: cannot be read as an image ({error}); {part.remedy}") from None
    rows.label[:] = -1
    return rows, stamp
