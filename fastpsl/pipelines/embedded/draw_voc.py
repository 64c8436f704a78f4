"""A small PASCAL VOC that the project draws, the default data of detection, segmentation and multi-label.

It has VOC's layout in the user's cache folder, with classes.txt (the three classes of shapes.py) and
proposals for Fast R-CNN.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from fastpsl.files.caches import cache_folder
from fastpsl.files.workers import usable_cores
from fastpsl.pipelines.datasets.voc.annotations import VOID, mask_png
from fastpsl.pipelines.datasets.voc.dataset import CLASSES_FILE
from fastpsl.pipelines.embedded.backgrounds import Random
from fastpsl.pipelines.embedded.draw_sample import drawing
from fastpsl.pipelines.embedded.shapes import CLASS_NAMES, Shape, draw_scene

VERSION = "drawn-voc-v1"  # a new name whenever the images change
SEED = 20241
_QUALITY = 92  # of JPEGs
_JITTERED, _RANDOM = 6, 150  # proposals near each object, and random ones per image
_LEAST_IOU, _MOST_IOU = 0.5, 0.9


class _DrawnImage(NamedTuple):
    name: str
    size: tuple[int, int]  # height, width
    boxes: np.ndarray  # int [n, 4]: xmin ymin xmax ymax, counted from 1, inclusive


def drawn_voc(cache: Path | None = None) -> Path:
    """Return the VOCdevkit, which the first use draws in seconds.

    VOC2007 has trainval (240) and test (80), with proposals/voc_2007_trainval.mat and voc_2007_test.mat.
    VOC2012 has train (160) and val (60), with masks too. They are equal on every machine but for the version
    of the JPEG encoder.

    Args:
        cache: The folder for it; by default $XDG_CACHE_HOME or ~/.cache, there fastpsl/drawn-voc-v1.

    Raises:
        ValueError: The folder cannot be written.
    """
    folder = (cache or cache_folder()) / VERSION / "VOCdevkit"
    if folder.exists():
        return folder
    with drawing(folder.parent):
        if not folder.exists():
            partial = folder.with_name("part")
            shutil.rmtree(partial, ignore_errors=True)
            draw_voc(partial, 240, 80, num_train_masks=160, num_test_masks=60)
            os.rename(partial, folder)
    return folder


def draw_voc(
    folder: Path,
    num_train: int,
    num_test: int,
    seed: int = SEED,
    side_px: int = 128,
    *,
    num_train_masks: int | None = None,
    num_test_masks: int | None = None,
) -> Path:
    """Draw a VOCdevkit at `folder` and return the folder.

    VOC2007 has the lists train and val (the halves of trainval) and test in Main. VOC2012 has train, val and
    trainval in Main and Segmentation, and masks.
    """
    folder.mkdir(parents=True)
    (folder / CLASSES_FILE).write_text("".join(f"{name}\n" for name in CLASS_NAMES))
    num_masks = (
        num_train if num_train_masks is None else num_train_masks,
        num_test if num_test_masks is None else num_test_masks,
    )
    images = _draw_year(folder / "VOC2007", "{:06}", num_train + num_test, (seed, 2007), side_px, False)
    names = [image.name for image in images]
    half = (num_train + 1) // 2
    _write_lists(
        folder / "VOC2007", "Main",
        {
            "train": names[:half], "val": names[half:num_train],
            "trainval": names[:num_train], "test": names[num_train:],
        },
    )  # fmt: skip
    (folder / "proposals").mkdir()
    for split, part in (("trainval", images[:num_train]), ("test", images[num_train:])):
        _write_proposals(folder / "proposals" / f"voc_2007_{split}.mat", part, (seed, len(split)))
    images = _draw_year(folder / "VOC2012", "2008_{:06}", sum(num_masks), (seed, 2012), side_px, True)
    names = [image.name for image in images]
    for kind in ("Main", "Segmentation"):
        lists = {"train": names[: num_masks[0]], "val": names[num_masks[0] :], "trainval": names}
        _write_lists(folder / "VOC2012", kind, lists)
    return folder


def _write_lists(year: Path, kind: str, lists: dict[str, list[str]]) -> None:
    folder = year / "ImageSets" / kind
    folder.mkdir(parents=True)
    for split, names in lists.items():
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def _draw_year(
    year: Path, naming: str, num: int, seed: tuple[int, int], side_px: int, with_masks: bool
) -> list[_DrawnImage]:
    for part in ("JPEGImages", "Annotations", *(("SegmentationClass",) if with_masks else ())):
        (year / part).mkdir(parents=True)

    def draw(index: int) -> _DrawnImage:
        random = np.random.default_rng((*seed, index))
        height, width = (int(side) for side in random.integers(side_px * 3 // 4, side_px * 5 // 4 + 1, 2))
        image, shapes = draw_scene(random, height, width, side_px)
        name = naming.format(index + 1)
        Image.fromarray(image).save(year / "JPEGImages" / f"{name}.jpg", quality=_QUALITY)
        boxes = np.array([_box(shape.mask) for shape in shapes]).reshape(-1, 4)
        (year / "Annotations" / f"{name}.xml").write_text(
            _xml(year.name, name, (height, width), shapes, boxes)
        )
        if with_masks:
            mask = mask_png(_mask(shapes, height, width))
            (year / "SegmentationClass" / f"{name}.png").write_bytes(mask)
        return _DrawnImage(name, (height, width), boxes)

    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(draw, range(num)))


def _box(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]) + 1, int(rows[0]) + 1, int(columns[-1]) + 1, int(rows[-1]) + 1]


def _xml(year: str, name: str, size: tuple[int, int], shapes: list[Shape], boxes: np.ndarray) -> str:
    objects = []
    for shape, box in zip(shapes, boxes, strict=True):
        sides = "".join(
            f"<{side}>{value}</{side}>"
            for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        )
        objects.append(
            f"  <object><name>{escape(CLASS_NAMES[shape.label])}</name><pose>Unspecified</pose>"
            f"<truncated>{int(shape.truncated)}</truncated><difficult>{int(shape.difficult)}</difficult>"
            f"<bndbox>{sides}</bndbox></object>\n"
        )
    return (
        f"<annotation>\n  <folder>{year}</folder><filename>{name}.jpg</filename>\n"
        f"  <size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>\n"
        f"  <segmented>{int(year == 'VOC2012')}</segmented>\n{''.join(objects)}</annotation>\n"
    )


def _mask(shapes: list[Shape], height: int, width: int) -> np.ndarray:
    """Return class numbers from 1; as in VOC, difficult objects and a border around each object are void."""
    numbers = np.zeros((height, width), np.uint8)
    owner = np.zeros((height, width), np.int32)
    for i, shape in enumerate(shapes):
        numbers[shape.mask] = VOID if shape.difficult else shape.label + 1
        owner[shape.mask] = i + 1
    border = np.zeros((height, width), bool)
    for ahead, behind in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        is_edge = owner[ahead] != owner[behind]
        border[ahead] |= is_edge
        border[behind] |= is_edge
    numbers[border] = VOID
    return numbers


def _write_proposals(path: Path, drawn: list[_DrawnImage], seed: tuple[int, int]) -> None:
    """Write the format of Fast R-CNN's selective search.

    It has the cells `images` (ids) and `boxes` (float64 [k, 4]: y1 x1 y2 x2, counted from 1, inclusive).
    """
    from scipy.io import savemat  # the import takes a second

    images, boxes = np.empty((len(drawn), 1), object), np.empty((1, len(drawn)), object)
    for i, image in enumerate(drawn):
        random = np.random.default_rng((*seed, i))
        near = [_jitter(random, box, image.size) for box in image.boxes for _ in range(_JITTERED)]
        proposals = np.array(near + [_random_box(random, image.size) for _ in range(_RANDOM)], np.float64)
        images[i, 0] = image.name
        boxes[0, i] = proposals[random.permutation(len(proposals))][:, [1, 0, 3, 2]]
    savemat(path, {"images": images, "boxes": boxes}, do_compression=True)


def _jitter(random: Random, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a box with an IoU between the two bounds with `box`."""
    height, width = size
    sides = box[2:] - box[:2] + 1
    while True:
        candidate = np.rint(box + random.normal(0, 0.12, 4) * np.tile(sides, 2)).astype(np.int64)
        candidate = np.clip(candidate, 1, [width, height, width, height])
        if (candidate[2:] >= candidate[:2]).all() and _LEAST_IOU <= _iou(box, candidate) <= _MOST_IOU:
            return candidate


def _random_box(random: Random, size: tuple[int, int]) -> np.ndarray:
    """Return a random box with sides of at least 16 px."""
    height, width = size
    h, w = (int(random.integers(16, side + 1)) for side in (height, width))
    top, left = int(random.integers(1, height - h + 2)), int(random.integers(1, width - w + 2))
    return np.array([left, top, left + w - 1, top + h - 1])


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    """Return the IoU of two boxes of whole pixels, both ends inclusive."""
    inner = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]) + 1
    both = float(np.prod(np.maximum(inner, 0)))
    areas = [float(np.prod(box[2:] - box[:2] + 1)) for box in (one, other)]
    return both / (sum(areas) - both)
