"""The folders of PASCAL VOC and SBD: places of images and annotations, ids in the lists, classes.

VOCdevkit/VOC2007/{JPEGImages,Annotations,ImageSets/{Main,Segmentation},SegmentationClass}   and VOC2012 alike
VOCdevkit/classes.txt                                              own class names, a line each
benchmark_RELEASE/dataset/{img/*.jpg,cls/*.mat,train.txt,val.txt}  SBD (Hariharan et al., 2011)
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

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
    """Return the folder with VOC2007, VOC2012, ...: `root`, or VOCdevkit in it.

    Raises:
        ValueError: There is none.
    """
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
    """Return the names in a folder, sorted; none where it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def class_names(folder: Path) -> list[str]:
    """Return VOC's class names, or those of classes.txt.

    Raises:
        ValueError: classes.txt names none, one twice, or too many.
    """
    path = folder / CLASSES_FILE
    if not path.exists():
        return list(CLASSES)
    names = _lines(path)
    if not 1 <= len(names) <= MAX_CLASSES:
        raise ValueError(f"{path}: names {len(names)} classes; give 1 to {MAX_CLASSES}, one name per line")
    repeated = _first_repeated(names)
    if repeated:
        raise ValueError(f"{path}: names {repeated!r} twice; name each class once")
    return names


def image_set(folder: Path, name: str, needs: Needs) -> ImageSet:
    """Return the set `name`, such as "2007_trainval", below the VOCdevkit `folder`.

    Raises:
        ValueError: The year, one of its folders, the list or a file that it names is missing. Or the list is
            empty or names an image twice.
    """
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
    result = ImageSet(_read_ids(list_file), images, year_folder / annotations, ending, list_file, remedy)
    _check_files(result)
    return result


def sbd_set(root: Path, folder: Path) -> ImageSet:
    """Return SBD's images that VOC2012's lists train and val do not name.

    Together with train they are the 10,582 images that segmentation is usually trained on. `root` is SBD's
    folder, `folder` VOCdevkit.

    Raises:
        ValueError: A folder, a list or a file that it names is missing.
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
    result = ImageSet(new_ids, sbd_folder / "img", sbd_folder / "cls", ".mat", sbd_folder, remedy)
    _check_files(result)
    return result


def check_disjoint(parts: Sequence[ImageSet]) -> None:
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
                f"that {part.list_file} names are missing, the first is {missing[0]}; {part.remedy}"
            )


def _read_ids(list_file: Path) -> list[str]:
    ids = _lines(list_file)
    if not ids:
        raise ValueError(f"{list_file}: names no image; give one id per line, such as 000005")
    for line in ids:
        if len(line.split()) != 1 or "/" in line:
            raise ValueError(f"{list_file}: the line {line!r} is no id; give one id per line, such as 000005")
    repeated = _first_repeated(ids)
    if repeated:
        raise ValueError(f"{list_file}: names {repeated} twice; name each image once")
    return ids


def _first_repeated(names: list[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _lines(path: Path) -> list[str]:
    """Return the lines of a file that are not empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text ({error}); extract it again") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
