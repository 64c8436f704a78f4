"""PASCAL VOC's folders: which year lies where, which pictures a set names, which classes there are.

VOCdevkit/VOC2007/{JPEGImages,Annotations,ImageSets/{Main,Segmentation},SegmentationClass}   and VOC2012 alike
VOCdevkit/classes.txt    names of classes, a line each, instead of VOC's: own data in this layout
"""

import re
from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

Needs = Literal["boxes", "masks"]

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CLASSES_FILE = "classes.txt"
MAX_CLASSES = 254  # 0 is the background of masks, 255 void
LISTS = {"boxes": "Main", "masks": "Segmentation"}
_ARCHIVES = {
    ("2007", False): "VOCtrainval_06-Nov-2007.tar",
    ("2007", True): "VOCtest_06-Nov-2007.tar",
    ("2012", False): "VOCtrainval_11-May-2012.tar",
}


class ImageSet(NamedTuple):
    """Such as 2007_trainval: a list of a year, and the ids that it names."""

    year: str
    split: str
    folder: Path  # VOC2007
    list_file: Path
    ids: list[str]

    @property
    def remedy(self) -> str:
        """How to get what is missing of it."""
        archive = _ARCHIVES.get((self.year, self.split == "test"))
        return f"extract {archive} again, the whole of it" if archive else "copy the whole folder"


def devkit(root: Path) -> Path:
    """The folder with VOC2007, VOC2012, ...: `root`, or VOCdevkit in it. ValueError where there is none."""
    for folder in (root, root / "VOCdevkit"):
        if any(is_year(path.name) and path.is_dir() for path in _entries(folder)):
            return folder
    if is_year(root.name) and (root / "JPEGImages").is_dir():
        raise ValueError(f"{root}: is one year of PASCAL VOC; give the folder that holds it, {root.parent}")
    raise ValueError(
        f"{root}: no folder of PASCAL VOC, which holds VOC2007 or VOC2012, itself or in VOCdevkit; give VOCdevkit"
    )


def is_year(name: str) -> bool:
    return re.fullmatch(r"VOC\d{4}", name) is not None


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def class_names(folder: Path) -> list[str]:
    """VOC's, or those of classes.txt. ValueError where that names none, one twice, or too many."""
    path = folder / CLASSES_FILE
    if not path.exists():
        return list(CLASSES)
    names = [line.strip() for line in _lines(path) if line.strip()]
    if not 1 <= len(names) <= MAX_CLASSES:
        raise ValueError(f"{path}: names {len(names)} classes; give 1 to {MAX_CLASSES}, a name a line")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: names {twice[0]!r} twice; give each class a line")
    return names


def image_set(folder: Path, name: str, needs: Needs) -> ImageSet:
    """The set `name` ("2007_trainval") below VOCdevkit. ValueError where its year, its folders or its list are missing, or the
    list names nothing, or a picture twice."""
    year, _, split = name.partition("_")
    if not re.fullmatch(r"\d{4}_\w+", name):
        raise ValueError(f"{name!r} is no set of PASCAL VOC; give a year and a list, such as 2007_trainval")
    place = folder / f"VOC{year}"
    kind = LISTS[needs]
    list_file = place / "ImageSets" / kind / f"{split}.txt"
    found = ImageSet(year, split, place, list_file, [])
    if not place.is_dir():
        there = ", ".join(sorted(path.name for path in _entries(folder) if is_year(path.name)))
        raise ValueError(f"{folder}: holds {there} and no VOC{year}, which {name} is of; {found.remedy}")
    for part in ("JPEGImages", "Annotations" if needs == "boxes" else "SegmentationClass", "ImageSets"):
        if not (place / part).is_dir():
            raise ValueError(f"{place}: holds no {part}, which {name} needs; {found.remedy}")
    if not list_file.is_file():
        there = ", ".join(sorted(path.stem for path in _entries(list_file.parent) if "_" not in path.stem))
        raise ValueError(f"{list_file}: no such list ({kind} has {there or 'none'}); {found.remedy}")
    return found._replace(ids=read_ids(list_file))


def read_ids(list_file: Path) -> list[str]:
    """The ids of a list, one a line. ValueError where there are none, a line holds something else, or one stands there twice."""
    ids = [line.strip() for line in _lines(list_file) if line.strip()]
    if not ids:
        raise ValueError(f"{list_file}: names no picture; give an id a line, such as 000005")
    for line in ids:
        if len(line.split()) != 1 or "/" in line:
            raise ValueError(f"{list_file}: the line {line!r} is no id; give an id a line, such as 000005")
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"{list_file}: names {twice[0]} twice ({len(twice):,} such); name each picture once")
    return ids


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text ({error}); extract it again") from None
