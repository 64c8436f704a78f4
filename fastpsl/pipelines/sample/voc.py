"""A small PASCAL VOC that the project draws itself: recipes without `--data` learn and score detection, segmentation and multi-label on it.

VOC's layout in the user's cache folder, with classes.txt (three classes of shapes, drawn_shapes.py) and proposals for Fast R-CNN.
"""

import fcntl
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from fastpsl.pipelines.files.cache_folder import cache_folder
from fastpsl.pipelines.sample.shapes import CLASS_NAMES, Shape, draw_scene
from fastpsl.pipelines.sample.subjects import Random
from fastpsl.pipelines.voc.layout import CLASSES_FILE
from fastpsl.pipelines.voc.masks import VOID, mask_png

VERSION = "drawn-voc-v1"  # a new name whenever the pictures change
SEED = 20241
_QUALITY = 92  # of JPEGs
_JITTERED, _RANDOM = 6, 150  # proposals: an object, a picture
_LEAST_IOU, _MOST_IOU = 0.5, 0.9


class _Drawn(NamedTuple):
    name: str
    size: tuple[int, int]  # height, width
    boxes: np.ndarray  # int [n, 4]: xmin ymin xmax ymax, from 1, both inside


def drawn_voc(cache: Path | None = None) -> Path:
    """The VOCdevkit, drawn on first use (seconds) in `cache` (default: $XDG_CACHE_HOME or ~/.cache, there fastpsl/drawn-voc-v1).

    VOC2007: trainval 240, test 80, with proposals/voc_2007_trainval.mat and voc_2007_test.mat. VOC2012: train 160, val 60, with masks
    too. Equal on every machine but for the JPEG encoder's version. ValueError when the folder cannot be written.
    """
    place = cache or cache_folder()
    folder = place / VERSION / "VOCdevkit"
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.parent / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one rank draws, the others find the files
            if not folder.exists():
                beside = folder.with_name("part")
                shutil.rmtree(beside, ignore_errors=True)
                draw_voc(beside, 240, 80, num_train_masks=160, num_test_masks=60)
                os.rename(beside, folder)
    except OSError as error:
        raise ValueError(
            f"{folder.parent}: the drawn pictures cannot be made there ({error.strerror}); set XDG_CACHE_HOME to a folder that can be written"
        ) from None
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
    """Draws a VOCdevkit at `folder` and returns it: VOC2007 (Main: train and val, the halves of trainval; test) and VOC2012 (train, val,
    trainval, both lists; masks), as many pictures in each unless said otherwise. Sides are 3/4 to 5/4 of `side_px`."""
    folder.mkdir(parents=True)
    (folder / CLASSES_FILE).write_text("".join(f"{name}\n" for name in CLASS_NAMES))
    num_masks = (
        num_train if num_train_masks is None else num_train_masks,
        num_test if num_test_masks is None else num_test_masks,
    )
    drawn = _draw_year(folder / "VOC2007", "{:06}", num_train + num_test, (seed, 2007), side_px, False)
    names = [one.name for one in drawn]
    half = (num_train + 1) // 2
    _write_lists(
        folder / "VOC2007", "Main",
        {"train": names[:half], "val": names[half:num_train], "trainval": names[:num_train], "test": names[num_train:]},
    )  # fmt: skip
    (folder / "proposals").mkdir()
    for split, part in (("trainval", drawn[:num_train]), ("test", drawn[num_train:])):
        _write_proposals(folder / "proposals" / f"voc_2007_{split}.mat", part, (seed, len(split)))
    drawn = _draw_year(folder / "VOC2012", "2008_{:06}", sum(num_masks), (seed, 2012), side_px, True)
    names = [one.name for one in drawn]
    for kind in ("Main", "Segmentation"):
        lists = {"train": names[: num_masks[0]], "val": names[num_masks[0] :], "trainval": names}
        _write_lists(folder / "VOC2012", kind, lists)
    return folder


def _write_lists(year: Path, kind: str, lists: dict[str, list[str]]) -> None:
    place = year / "ImageSets" / kind
    place.mkdir(parents=True)
    for split, names in lists.items():
        (place / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def _draw_year(
    year: Path, naming: str, num: int, seed: tuple[int, int], side_px: int, with_masks: bool
) -> list[_Drawn]:
    for part in ("JPEGImages", "Annotations", *(("SegmentationClass",) if with_masks else ())):
        (year / part).mkdir(parents=True)

    def draw(index: int) -> _Drawn:
        random = np.random.default_rng((*seed, index))
        height, width = (int(side) for side in random.integers(side_px * 3 // 4, side_px * 5 // 4 + 1, 2))
        picture, shapes = draw_scene(random, height, width, side_px)
        name = naming.format(index + 1)
        Image.fromarray(picture).save(year / "JPEGImages" / f"{name}.jpg", quality=_QUALITY)
        boxes = np.array([_box(shape.mask) for shape in shapes]).reshape(-1, 4)
        (year / "Annotations" / f"{name}.xml").write_text(
            _xml(year.name, name, (height, width), shapes, boxes)
        )
        if with_masks:
            mask = mask_png(_mask(shapes, height, width))
            (year / "SegmentationClass" / f"{name}.png").write_bytes(mask)
        return _Drawn(name, (height, width), boxes)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
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
    """Class numbers from 1; as VOC has it, difficult objects and a border around each object are void."""
    numbers = np.zeros((height, width), np.uint8)
    owner = np.zeros((height, width), np.int32)
    for i, shape in enumerate(shapes):
        numbers[shape.mask] = VOID if shape.difficult else shape.label + 1
        owner[shape.mask] = i + 1
    border = np.zeros((height, width), bool)
    for ahead, behind in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differs = owner[ahead] != owner[behind]
        border[ahead] |= differs
        border[behind] |= differs
    numbers[border] = VOID
    return numbers


def _write_proposals(path: Path, drawn: list[_Drawn], seed: tuple[int, int]) -> None:
    """As Fast R-CNN's selective search: cells `images` (ids) and `boxes` (float64 [k, 4]: y1 x1 y2 x2 from 1, both inside)."""
    from scipy.io import savemat  # takes a second

    images, boxes = np.empty((len(drawn), 1), object), np.empty((1, len(drawn)), object)
    for i, one in enumerate(drawn):
        random = np.random.default_rng((*seed, i))
        near = [_jittered(random, box, one.size) for box in one.boxes for _ in range(_JITTERED)]
        found = np.array(near + [_anywhere(random, one.size) for _ in range(_RANDOM)], np.float64)
        images[i, 0] = one.name
        boxes[0, i] = found[random.permutation(len(found))][:, [1, 0, 3, 2]]
    savemat(path, {"images": images, "boxes": boxes}, do_compression=True)


def _jittered(random: Random, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A box whose overlap with `box` is between the two bounds."""
    height, width = size
    sides = box[2:] - box[:2] + 1
    while True:
        moved = np.rint(box + random.normal(0, 0.12, 4) * np.tile(sides, 2)).astype(np.int64)
        moved = np.clip(moved, 1, [width, height, width, height])
        if (moved[2:] >= moved[:2]).all() and _LEAST_IOU <= _iou(box, moved) <= _MOST_IOU:
            return moved


def _anywhere(random: Random, size: tuple[int, int]) -> np.ndarray:
    """A box of 16 px a side at least."""
    height, width = size
    h, w = (int(random.integers(16, side + 1)) for side in (height, width))
    top, left = int(random.integers(1, height - h + 2)), int(random.integers(1, width - w + 2))
    return np.array([left, top, left + w - 1, top + h - 1])


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    """Of two boxes of whole pixels, both ends inside."""
    inner = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]) + 1
    both = float(np.prod(np.maximum(inner, 0)))
    areas = [float(np.prod(box[2:] - box[:2] + 1)) for box in (one, other)]
    return both / (sum(areas) - both)
