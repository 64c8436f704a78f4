"""Compute the average precision of detected boxes, by VOC's devkit and by COCO's evaluation.

VOC's evaluation is written out here, because no maintained package matches boxes as the devkit (VOCevaldet.m)
does. COCO's is that of pycocotools. Areas are plain products of sides. The devkit counts pixels from the
first to the last and adds 1 to each side. That is the same for boxes that are 0-based and half-open (x1 =
xmin - 1, x2 = xmax). docs/evaluate/detection.md lists where other evaluators differ.
"""

import contextlib
import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fastpsl.console.installed import install
from fastpsl.pipelines.datasets.voc.dataset import VOC

IOUS = np.arange(50, 100, 5) / 100
POINTS = np.arange(11) / 10  # recalls, as in VOC2007
MAX_PER_IMAGE = 100  # detections per class and image: COCO's maxDets


class Boxes(NamedTuple):
    """The boxes of all images, one after another."""

    image: np.ndarray  # int64 [n]
    boxes: np.ndarray  # x1 y1 x2 y2 in px, float64 [n, 4]
    labels: np.ndarray  # int64 [n]
    scores: np.ndarray  # float32 [n]; 1 for annotated objects
    difficult: np.ndarray  # bool [n]; False for detections


def box_scores(predictions: Mapping[str, np.ndarray], data: VOC) -> dict[str, float]:
    """Score detections.

    AP, AP50 and AP75 use VOC's matching and VOC2007's 11 points. AP is the mean over overlaps of .5, .55 ...
    .95, as Detectron2 has it for VOC 2007; the papers print those numbers. coco_AP, coco_AP50 and coco_AP75
    use COCO's matching and 101 points. AP50_<class> uses VOC's. A class has no score, and no part in a mean,
    if all of its objects are difficult.

    Args:
        predictions: Detections of all images: "image" int64 [N], "boxes" float32 [N, 4], "scores" float32
            [N], "labels" int64 [N].
        data: The annotated images.

    Returns:
        Percent.

    Raises:
        ValueError: If every object is difficult, or pycocotools is missing.
    """
    assert data.class_names is not None
    truth = true_boxes(data)
    image, boxes, labels, scored = (predictions[name] for name in ("image", "boxes", "labels", "scores"))
    found = Boxes(image, boxes.astype(np.float64), labels, scored, np.zeros(len(scored), bool))
    assert not len(found.image) or (
        found.image.max() < data.num_samples and found.labels.max() < data.num_classes
    )
    ap = voc_ap(found, truth, data.num_classes)
    has_score = ~np.isnan(ap[0])
    if not has_score.any():
        raise ValueError(
            f"none of the {data.num_samples:,} images has an object that is not difficult: "
            f"there is nothing to score"
        )
    means = dict(zip(IOUS.tolist(), ap[:, has_score].mean(1).tolist(), strict=True))
    coco = dict(zip(IOUS.tolist(), coco_ap(found, truth, data.num_samples, data.num_classes), strict=True))
    scores: dict[str, float] = {}
    for name, by_iou in (("", means), ("coco_", coco)):
        scores |= {
            f"{name}AP": float(np.mean(list(by_iou.values()))),
            f"{name}AP50": by_iou[0.5],
            f"{name}AP75": by_iou[0.75],
        }
    classes = zip(data.class_names, ap[0].tolist(), has_score, strict=True)
    scores |= {f"AP50_{name}": value for name, value, is_scored in classes if is_scored}
    return {name: 100 * value for name, value in scores.items()}


def voc_ap(found: Boxes, truth: Boxes, num_classes: int) -> np.ndarray:
    """Compute VOC's average precision, float64 [10, num_classes] in [0, 1], a row for each of `IOUS`.

    Detections are matched in the order of falling score; equal scores are ordered by image, then as given. A
    detection belongs to the object of its class in its image that it overlaps most. It is wrong if that
    overlap is too small. It does not count if the object is difficult. Otherwise the first detection of an
    object is right and every later one is wrong. A class whose objects are all difficult gets NaN.
    """
    order = np.lexsort((found.image, -found.scores, found.labels))  # stable
    found = Boxes(*(column[order] for column in found))
    overlap, objects = _most_overlapped(found, truth, num_classes)
    num_true = np.bincount(truth.labels[~truth.difficult], minlength=num_classes)
    starts = np.searchsorted(found.labels, np.arange(num_classes + 1))
    ap = np.full((len(IOUS), num_classes), np.nan)
    for row, iou in zip(ap, IOUS, strict=True):
        hits = np.flatnonzero(overlap >= iou)
        is_right = np.zeros(len(order), bool)
        is_right[hits[np.unique(objects[hits], return_index=True)[1]]] = True
        counts = np.ones(len(order), bool)
        counts[hits] = ~truth.difficult[objects[hits]]
        for label in np.flatnonzero(num_true):
            part = slice(starts[label], starts[label + 1])
            row[label] = eleven_points(is_right[part][counts[part]], int(num_true[label]))
    return ap


def eleven_points(is_right: np.ndarray, num_true: int) -> float:
    """Return the mean, over recalls of 0, .1 ... 1, of the best precision at that or a higher one, or 0."""
    hits = np.cumsum(is_right)
    precision = hits / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(hits / num_true, POINTS)
    return float(np.append(best, 0.0)[places].mean())


def _most_overlapped(found: Boxes, truth: Boxes, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the object of the same class and image that each detection overlaps most, the first of equal ones.

    Return the IoU, float64 [n], and the object's number, int64 [n]; 0 and -1 where there is none.
    """
    keys = truth.image * num_classes + truth.labels
    order = np.argsort(keys, kind="stable")
    found_keys = found.image * num_classes + found.labels
    starts = np.searchsorted(keys[order], found_keys)
    nums = np.searchsorted(keys[order], found_keys, side="right") - starts
    overlap, objects = np.zeros(len(found_keys)), np.full(len(found_keys), -1)
    # Pairs of a detection and an object that it may belong to.
    detections = np.repeat(np.arange(len(found_keys)), nums)
    ends = np.cumsum(nums)
    candidates = order[np.arange(len(detections)) + np.repeat(starts - ends + nums, nums)]
    ious = _iou(found.boxes[detections], truth.boxes[candidates])
    np.maximum.at(overlap, detections, ious)
    best = np.flatnonzero(ious == overlap[detections])[::-1]
    objects[detections[best]] = candidates[best]  # reversed, so that the first of equal pairs is written last
    return overlap, objects


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU of two lists of boxes [n, 4], pair by pair, float64 [n]."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = sides.clip(0).prod(1)
    return shared / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared)


def coco_ap(
    found: Boxes, truth: Boxes, num_images: int, num_classes: int, points: np.ndarray | None = None
) -> list[float]:
    """Compute pycocotools' average precision at each of `IOUS`, in [0, 1].

    Difficult objects are passed as crowds (`iscrowd`). This is the only way in COCO's format to state that
    any number of detections counts neither way. It is looser than VOC's rule, because the overlap with a
    crowd is divided by the area of the detection alone.
    """
    make_coco, make_evaluator = require_pycocotools()
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for boxes in (truth, found):
            sides.append(make_coco())
            # Not by `loadRes`, because that takes no empty list.
            sides[-1].dataset = _coco_dataset(boxes, num_images, num_classes)
            sides[-1].createIndex()
        scored = make_evaluator(*sides, "bbox")
        scored.params.areaRng, scored.params.areaRngLbl = [[0.0, np.inf]], ["all"]
        scored.params.maxDets, scored.params.iouThrs = [MAX_PER_IMAGE], IOUS
        if points is not None:
            scored.params.recThrs = points
        scored.evaluate()
        scored.accumulate()
    precision = scored.eval["precision"][..., 0, 0]  # [ious, points, classes]; -1 for a class without objects
    return [float(values[values > -1].mean()) for values in precision]


def _coco_dataset(boxes: Boxes, num_images: int, num_classes: int) -> dict[str, Any]:
    """Return the boxes and their scores in COCO's format."""
    sides = boxes.boxes[:, 2:] - boxes.boxes[:, :2]
    bounds = np.concatenate([boxes.boxes[:, :2], sides], 1)
    columns = (boxes.image, boxes.labels, bounds, sides.prod(1), boxes.scores, boxes.difficult.astype(int))
    names = ("image_id", "category_id", "bbox", "area", "score", "iscrowd")
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {
        "images": [{"id": image} for image in range(num_images)],
        "categories": [{"id": label} for label in range(num_classes)],
        # Numbers from 1, because pycocotools reads a match with number 0 as no match.
        "annotations": [
            {"id": number, **dict(zip(names, row, strict=True))} for number, row in enumerate(rows, 1)
        ],
    }


def true_boxes(data: VOC) -> Boxes:
    """Return the annotated objects of all images."""
    objects = [data.objects(i) for i in range(data.num_samples)]
    names = ("labels", "boxes", "difficult")
    labels, boxes, difficult = (np.concatenate([getattr(each, name) for each in objects]) for name in names)
    image = np.repeat(np.arange(data.num_samples), [len(each.labels) for each in objects])
    return Boxes(image, boxes.astype(np.float64), labels, np.ones(len(labels), np.float32), difficult)


def require_pycocotools() -> tuple[type, type]:
    """Return pycocotools' classes COCO and COCOeval; call it before hours of training.

    Raises:
        ValueError: If it cannot be imported.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise ValueError(
            f"scores by COCO need pycocotools, which is not installed; {install('transfer')}"
        ) from None
    return COCO, COCOeval
