"""Lists of image files, in formats known by name and content, and the folder that their images lie in.

    .json        iNaturalist's: {"images": [{"id", "file_name"}], "categories": [{"id", "name"}],
                 "annotations": [{"image_id", "category_id"}]}
    .csv, .txt   a path per line, and after white space its label on all lines or none: a number from 0
                 (Places205's), or a class name, also with a box behind it (Tiny-ImageNet's val)
    .csv, .txt   otherwise a table (text_lists.py): miniImageNet's (Ravi and Larochelle) has filename,label

The labels of a folder may also be a list with a class per line, in the order of the folder's files.

All images of a list lie below one folder. It is the one of `folders_around` in which most of a sample of its
names are files.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fastpsl.console.progress import operation
from fastpsl.console.words import cut
from fastpsl.files.system_errors import input_error
from fastpsl.files.workers import map_in_order
from fastpsl.pipelines.interface.source import Counted, Picks, Sample, Tally
from fastpsl.pipelines.readers import text_lists
from fastpsl.pipelines.readers.folder import image_folder

_NUM_TRIED = 64
_THREADS, _NAMES_A_TASK = 16, 512  # remote storage answers slowly, but many requests at once
_KEYS = ("images", "annotations", "categories")


@dataclass
class ImageList(Counted):
    """A list and the folder `root` of its images."""

    names: text_lists.Names
    root: Path

    def samples(self, skip: int = 0) -> Iterator[Sample]:
        """Yield this shard's images in the list's order."""
        return map(self._sample, self.here[skip:])

    def picks(self, num: int, random: Random) -> Picks:
        """Choose images at random."""
        chosen = random.sample(self.here, min(num, self.num_samples))
        return Picks("picked at random", True, map(self._sample, chosen))

    def _sample(self, i: int) -> Sample:
        path = self.names.paths[i]
        return Sample(path, Path(os.path.join(self.root, path)), self.names.labels[i])


def image_list(path: str | Path, shard: tuple[int, int] = (0, 1), folder: Path | None = None) -> ImageList:
    """Read the list at `path` and check that its images exist, in `folder` or else around the list.

    `shard` (i, n) keeps the i-th of n runs of neighbours.
    """
    path = Path(path)
    names = read_list(path)
    if len(set(names.paths)) < len(names.paths):
        repeated = [name for name, count in Counter(names.paths).items() if count > 1]
        raise ValueError(
            f"{path}: names {len(repeated):,} of {len(set(names.paths)):,} images more than once, "
            f"the first is {cut(repeated[0])}; name each once"
        )
    if folder is None:
        places = text_lists.folders_around(path)
    else:  # the names may be relative to it, to a folder within it, or to one above
        within = [folder / below for below in text_lists.BELOW]
        places = [place for place in (*within, *list(folder.absolute().parents)[:2]) if place.is_dir()]
    examples = names.paths[:: -(-len(names.paths) // _NUM_TRIED)]
    root = max(places, key=lambda place: sum(os.path.isfile(os.path.join(place, name)) for name in examples))
    _require_there(path, names.paths, root, places)
    return _image_list(names, root, shard)


def labelled_folder(folder: Path, labels: Path, shard: tuple[int, int] = (0, 1)) -> ImageList:
    """Return the images in a folder, which has no folder per class, with the labels of a list.

    The list names the images, or has a class per line, in the order of the folder's sorted files.
    """
    if labels.suffix.lower() == ".json" or text_lists.names_images(labels):
        return image_list(labels, shard, folder)
    classes, files = text_lists.read_classes(labels), image_folder(folder)
    if files.class_names:
        raise ValueError(
            f"{folder}: has class folders ({files.class_names[0]}, ...), and {labels} has one class per line "
            "for the files of one folder; leave --labels out, or name the images in the list"
        )
    paths = [sample.name for sample in files.samples()]
    first_words = {line.split()[0] for line in classes if " " in line}
    if all(re.search("[,;\t]", line) for line in classes) or first_words >= {Path(p).stem for p in paths}:
        raise ValueError(
            f"{labels}: has several cells in a line ({cut(classes[-1])!r}) and no image's whole name; "
            f"write {paths[-1]},CLASS there, or in all lines the class alone"
        )
    if len(classes) != files.num_total:
        raise ValueError(
            f"{labels}: has {len(classes):,} classes, and {folder} has {files.num_total:,} images; "
            "give a list with the class of each image, in the order of the files' names"
        )
    names = text_lists.numbered(paths, classes)
    return _image_list(names._replace(left_out=files.left_out), folder, shard)


def _image_list(names: text_lists.Names, root: Path, shard: tuple[int, int]) -> ImageList:
    num, classes = len(names.paths), names.class_names
    labels = "no labels" if max(names.labels) < 0 else f"labels up to {max(names.labels):,}"
    labels = labels if classes is None else f"{len(classes):,} classes"
    return ImageList(
        names,
        root,
        counts=[num],
        shard=shard,
        class_names=classes,
        left_out=names.left_out,
        notes=[f"{num:,} images below {root}, {labels}"],
    )


def read_list(path: Path) -> text_lists.Names:
    """Read the list at `path`, without looking for its images."""
    try:
        is_json = path.suffix.lower() == ".json"
        names = _inaturalist(path) if is_json else text_lists.names_of(path, text_lists.entries(path))
    except OSError as error:
        raise input_error(path, error) from None
    if not names.paths:
        raise ValueError(f"{path}: names no image; give a list with one path per line, or iNaturalist's json")
    return names


def _inaturalist(path: Path) -> text_lists.Names:
    data = path.read_bytes()
    try:
        record = json.loads(data)
    except UnicodeDecodeError as error:
        raise text_lists.no_utf8(path, data[error.start], data.count(b"\n", 0, error.start) + 1) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: is no JSON ({error}); copy it again, or give a .txt with one path per line"
        ) from None
    if not isinstance(record, dict) or not all(isinstance(record.get(key), list) for key in _KEYS):
        raise ValueError(
            f"{path}: is no list of images as iNaturalist's ({', '.join(_KEYS)}, a list each); "
            f"give one such as train2018.json, or a .txt with one path per line"
        )
    try:
        categories = {int(entry["id"]): str(entry["name"]) for entry in record["categories"]}
        files = {int(entry["id"]): os.path.normpath(str(entry["file_name"])) for entry in record["images"]}
        annotations = [(int(entry["image_id"]), int(entry["category_id"])) for entry in record["annotations"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path}: an entry lacks what iNaturalist's have (images: id, file_name; "
            f"annotations: image_id, category_id; categories: id, name): {error!r}"
        ) from None
    if len(files) < len(record["images"]):
        raise ValueError(f"{path}: two of its images share an id; give each its own")
    # Labels follow the order of the ids; iNaturalist's ids, 0 to 8,141, are the labels themselves.
    numbers = {category: number for number, category in enumerate(sorted(categories))}
    labels = _labels(path, files, annotations, numbers)
    names = [categories[category] for category in sorted(categories)]
    return text_lists.Names(list(files.values()), list(labels.values()), names, Tally())


def _labels(
    path: Path, files: Mapping[int, str], annotations: list[tuple[int, int]], numbers: Mapping[int, int]
) -> dict[int, int]:
    """Return the label of each image, by its id, in the order of `files`."""
    labels = dict.fromkeys(files, -1)
    for image, category in annotations:
        if image not in files:
            raise ValueError(
                f"{path}: an annotation is of image {image}, which is not among its images; "
                "remove it, or add the image"
            )
        if category not in numbers:
            raise ValueError(
                f"{path}: {files[image]} is of category {category}, "
                f"which is not among its {len(numbers):,} categories; add the category"
            )
        if labels[image] >= 0:
            raise ValueError(
                f"{path}: {files[image]} has two annotations; give a list with one class per image"
            )
        labels[image] = numbers[category]
    unlabelled = [image for image, label in labels.items() if label < 0]
    if unlabelled:
        raise ValueError(
            f"{path}: {len(unlabelled):,} of {len(files):,} images have no annotation, "
            f"the first is {files[unlabelled[0]]}; annotate or remove them, or give a .txt of paths alone"
        )
    return labels


def _require_there(path: Path, paths: list[str], root: Path, places: list[Path]) -> None:
    """Raise ValueError unless all of `paths` are files below `root`."""
    parts = (paths[start : start + _NAMES_A_TASK] for start in range(0, len(paths), _NAMES_A_TASK))

    def missing(part: list[str]) -> list[str]:
        return [name for name in part if not os.path.isfile(os.path.join(root, name))]

    absent, num = list[str](), 0
    with operation(f"{path}: looking for its images", "images", len(paths)) as progress:
        for part, names in map_in_order(missing, parts, _THREADS, "list"):
            absent += names
            num += len(part)
            progress.update(num)
    if absent:
        text_lists.require_text(path, "".join(absent))
        folders = [str(root)] if len(absent) < len(paths) else [str(place) for place in places]
        raise ValueError(
            f"{path}: {len(absent):,} of the {len(paths):,} images that it names are absent, "
            f"the first is {cut(absent[0])}; looked below {', '.join(folders)}: "
            f"put the list beside them, or name those that are there"
        )
