"""What detected boxes are worth, in percent: average precision by VOC's devkit and by COCO's.

VOC's is written out here, as no maintained package matches as the devkit (VOCevaldet.m) does; COCO's is pycocotools'. Areas are plain
products of sides: the devkit counts pixels from the first to the last and adds 1 to each side, which is the same for boxes that are
0-based and half-open (x1 = xmin - 1, x2 = xmax). Where other evaluators differ: docs/transfer.md.
"""

import contextlib
import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fastpsl.pipelines.voc.dataset import VOC

IOUS = np.arange(50, 100, 5) / 100
POINTS = np.arange(11) / 10  # of recall, VOC2007's
MAX_PER_IMAGE = 100  # of a class in an image: COCO's maxDets


class Boxes(NamedTuple):
    """Boxes of all images, one behind the other."""

    image: np.ndarray  # int64 [n]
    boxes: np.ndarray  # float64 [n, 4]: x1 y1 x2 y2, px
    labels: np.ndarray  # int64 [n]
    scores: np.ndarray  # float32 [n]; 1 of truth
    difficult: np.ndarray  # bool [n]; False of detections


def box_scores(predictions: Mapping[str, np.ndarray], data: VOC) -> dict[str, float]:
    """Percent, of `predictions` of all images of `data`: image int64 [N], boxes float32 [N, 4], scores float32 [N], labels int64 [N].

    AP, AP50, AP75: VOC's matching and VOC2007's 11 points; AP is the mean over overlaps of .5, .55 ... .95, as Detectron2 has it for
    VOC 2007, whose numbers the papers print. coco_AP, coco_AP50, coco_AP75: COCO's matching and 101 points. AP50_<class>: VOC's.
    A class without an object that is not difficult has no score, and no part in a mean. ValueError where all are such, and
    where pycocotools is missing.
    """
    assert data.class_names is not None
    truth, found = true_boxes(data), _detected(predictions)
    assert not len(found.image) or (
        found.image.max() < data.num_samples and found.labels.max() < data.num_classes
    )
    ap = voc_ap(found, truth, data.num_classes)
    is_there = ~np.isnan(ap[0])
    if not is_there.any():
        raise ValueError(
            f"none of the {data.num_samples:,} images has an object that is not difficult: there is nothing to score"
        )
    means = dict(zip(IOUS.tolist(), ap[:, is_there].mean(1).tolist(), strict=True))
    coco = dict(zip(IOUS.tolist(), coco_ap(found, truth, data.num_samples, data.num_classes), strict=True))
    scores: dict[str, float] = {}
    for name, by_iou in (("", means), ("coco_", coco)):
        scores |= {
            f"{name}AP": float(np.mean(list(by_iou.values()))),
            f"{name}AP50": by_iou[0.5],
            f"{name}AP75": by_iou[0.75],
        }
    classes = zip(data.class_names, ap[0].tolist(), is_there, strict=True)
    scores |= {f"AP50_{name}": value for name, value, there in classes if there}
    return {name: 100 * value for name, value in scores.items()}


def voc_ap(found: Boxes, truth: Boxes, num_classes: int) -> np.ndarray:
    """float64 [10, num_classes], in [0, 1]: average precision at each of IOUS; NaN of a class without truth that is not difficult.

    By falling score (equal scores: by image, then as they stand) each detection belongs to the truth of its class in its image that
    it overlaps most. Below the overlap asked for it is wrong; with a difficult one it counts neither way; else the
    first one of a truth is right, and every further one wrong.
    """
    order = np.lexsort((found.image, -found.scores, found.labels))  # stable
    found = Boxes(*(column[order] for column in found))
    overlap, whose = _most_overlapped(found, truth, num_classes)
    num_true = np.bincount(truth.labels[~truth.difficult], minlength=num_classes)
    starts = np.searchsorted(found.labels, np.arange(num_classes + 1))
    ap = np.full((len(IOUS), num_classes), np.nan)
    for row, iou in zip(ap, IOUS, strict=True):
        hits = np.flatnonzero(overlap >= iou)
        is_right = np.zeros(len(order), bool)
        is_right[hits[np.unique(whose[hits], return_index=True)[1]]] = True
        counts = np.ones(len(order), bool)
        counts[hits] = ~truth.difficult[whose[hits]]
        for label in np.flatnonzero(num_true):
            its = slice(starts[label], starts[label + 1])
            row[label] = eleven_points(is_right[its][counts[its]], int(num_true[label]))
    return ap


def eleven_points(is_right: np.ndarray, num_true: int) -> float:
    """The mean, over recalls of 0, .1 ... 1, of the best precision at that recall or a higher one; 0 where none is reached.

    is_right: bool [n], of a class's detections that count, by falling score.
    """
    hits = np.cumsum(is_right)
    precision = hits / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(hits / num_true, POINTS)
    return float(np.append(best, 0.0)[places].mean())


def _most_overlapped(found: Boxes, truth: Boxes, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each detection the highest IoU with truth of its class in its image, float64 [n], and which that is, int64 [n]: the first of
    equal ones; 0 and -1 where there is none.
    """
    keys = truth.image * num_classes + truth.labels
    order = np.argsort(keys, kind="stable")
    wanted = found.image * num_classes + found.labels
    starts = np.searchsorted(keys[order], wanted)
    nums = np.searchsorted(keys[order], wanted, side="right") - starts
    overlap, whose = np.zeros(len(wanted)), np.full(len(wanted), -1)
    # A pair each: a detection, and a truth that it may belong to.
    of = np.repeat(np.arange(len(wanted)), nums)
    ends = np.cumsum(nums)
    candidates = order[np.arange(len(of)) + np.repeat(starts - ends + nums, nums)]
    ious = _iou(found.boxes[of], truth.boxes[candidates])
    np.maximum.at(overlap, of, ious)
    best = np.flatnonzero(ious == overlap[of])[::-1]
    whose[of[best]] = candidates[best]  # the first pair comes last, and stays
    return overlap, whose


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 [n] of boxes [n, 4] each, pair by pair."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = sides.clip(0).prod(1)
    return shared / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared)


def coco_ap(
    found: Boxes, truth: Boxes, num_images: int, num_classes: int, points: np.ndarray | None = None
) -> list[float]:
    """pycocotools' average precision at each of IOUS, in [0, 1]; `points` of recall in place of its 101.

    Difficult objects are crowds (`iscrowd`), the one way of COCO's format to say that any number of detections counts neither
    way there. It is looser than VOC's: a crowd's overlap is over the area of the detection alone.
    """
    make_coco, make_evaluator = _pycocotools()
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for boxes in (truth, found):
            sides.append(make_coco())
            # Not by its `loadRes`, which takes no empty list.
            sides[-1].dataset = _coco_dataset(boxes, num_images, num_classes)
            sides[-1].createIndex()
        scored = make_evaluator(*sides, "bbox")
        scored.params.areaRng, scored.params.areaRngLbl = [[0.0, np.inf]], ["all"]
        scored.params.maxDets, scored.params.iouThrs = [MAX_PER_IMAGE], IOUS
        if points is not None:
            scored.params.recThrs = points
        scored.evaluate()
        scored.accumulate()
    precision = scored.eval["precision"][..., 0, 0]  # [ious, points, classes]; -1: a class without truth
    return [float(one[one > -1].mean()) for one in precision]


def _coco_dataset(boxes: Boxes, num_images: int, num_classes: int) -> dict[str, Any]:
    """In COCO's format, with scores."""
    sides = boxes.boxes[:, 2:] - boxes.boxes[:, :2]
    bounds = np.concatenate([boxes.boxes[:, :2], sides], 1)
    columns = (boxes.image, boxes.labels, bounds, sides.prod(1), boxes.scores, boxes.difficult.astype(int))
    names = ("image_id", "category_id", "bbox", "area", "score", "iscrowd")
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {
        "images": [{"id": image} for image in range(num_images)],
        "categories": [{"id": label} for label in range(num_classes)],
        # From 1 on: to pycocotools a match with number 0 is none.
        "annotations": [
            {"id": number, **dict(zip(names, row, strict=True))} for number, row in enumerate(rows, 1)
        ],
    }


def true_boxes(data: VOC) -> Boxes:
    """What is annotated on all images of `data`."""
    objects = [data.objects(i) for i in range(data.num_samples)]
    labels = np.concatenate([one.labels for one in objects])
    return Boxes(
        np.repeat(np.arange(data.num_samples), [len(one.labels) for one in objects]),
        np.concatenate([one.boxes for one in objects]).astype(np.float64),
        labels,
        np.ones(len(labels), np.float32),
        np.concatenate([one.difficult for one in objects]),
    )


def _detected(predictions: Mapping[str, np.ndarray]) -> Boxes:
    scores = predictions["scores"]
    return Boxes(
        predictions["image"],
        predictions["boxes"].astype(np.float64),
        predictions["labels"],
        scores,
        np.zeros(len(scores), bool),
    )


def require_pycocotools() -> None:
    """ValueError where pycocotools is missing: asked before hours of training."""
    _pycocotools()


def _pycocotools() -> tuple[type, type]:
    """Its COCO and COCOeval."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise ValueError(
            'scores by COCO need pycocotools, which is not installed; pip install "fastpsl[transfer]"'
        ) from None
    return COCO, COCOeval
