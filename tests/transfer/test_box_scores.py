"""Scores of boxes: by hand, against the devkit's rules in plain loops, and against COCOeval where both are the same by definition."""

import sys
from typing import Any

import numpy as np
import pytest

from fastpsl.pipelines.voc.annotations import Objects
from fastpsl.transfer.detection.box_scores import (
    IOUS,
    POINTS,
    Boxes,
    box_scores,
    coco_ap,
    eleven_points,
    require_pycocotools,
    voc_ap,
)

CAT, DOG, EEL = 0, 1, 2
A, B, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (50, 50, 60, 60)


class Drawn:
    """Stands for VOC: of each image, (box, label) or (box, label, True) of difficult ones."""

    num_classes = 3

    def __init__(self, *images: list[tuple[Any, ...]]):
        self.class_names = ["cat", "dog", "eel"]
        self.images = images
        self.num_samples = len(images)

    def objects(self, index: int) -> Objects:
        rows = self.images[index]
        return Objects(
            np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
            np.array([row[1] for row in rows], np.int64),
            np.array([len(row) > 2 for row in rows], bool),
        )


def said(*rows: tuple[int, tuple[float, ...], int, float]) -> dict[str, np.ndarray]:
    """Predictions: (image, box, label, score) each."""
    return {
        "image": np.array([row[0] for row in rows], np.int64),
        "boxes": np.array([row[1] for row in rows], np.float32).reshape(-1, 4),
        "labels": np.array([row[2] for row in rows], np.int64),
        "scores": np.array([row[3] for row in rows], np.float32),
    }


def scores(data: Drawn, *rows: tuple[int, tuple[float, ...], int, float]) -> dict[str, float]:
    stands_for_voc: Any = data
    return box_scores(said(*rows), stands_for_voc)


def test_eleven_points() -> None:
    """Four objects; right, wrong, right, right: precision 1, 1/2, 2/3, 3/4 at recall 1/4, 1/4, 1/2, 3/4.

    Best precision from a recall on: 1 at 0, .1, .2; 3/4 at .3 to .7; none reaches .8, .9, 1.
    """
    data = Drawn([(A, CAT)], [(A, CAT)], [(A, CAT)], [(A, CAT)])
    found = scores(data, (0, A, CAT, 0.9), (1, FAR, CAT, 0.8), (1, A, CAT, 0.7), (2, A, CAT, 0.6))
    assert found["AP50"] == pytest.approx(100 * (3 * 1 + 5 * 0.75 + 3 * 0) / 11)
    assert found["AP50"] == found["AP50_cat"] == found["AP75"] == pytest.approx(found["AP"])
    # COCO's 101 points: 26 up to .25 with 1, 50 up to .75 with 3/4.
    assert found["coco_AP50"] == pytest.approx(100 * (26 * 1 + 50 * 0.75) / 101)


def test_recall_of_exactly_three_tenths_reaches_the_point() -> None:
    """Three of ten, all right: precision 1 at 0, .1, .2 and .3. numpy.arange(0, 1.1, .1) has .30000000000000004 there."""
    assert eleven_points(np.ones(3, bool), 10) == pytest.approx(4 / 11)
    assert eleven_points(np.ones(10, bool), 10) == pytest.approx(1)
    assert eleven_points(np.zeros(0, bool), 10) == 0


def test_overlaps() -> None:
    """10 x 7.2 of a truth of 10 x 10: IoU .72, right at .5, .55, .6, .65, .7 and wrong from .75 on."""
    found = scores(Drawn([(A, CAT)]), (0, (0, 0, 10, 7.2), CAT, 0.9))
    assert (found["AP"], found["AP50"], found["AP75"]) == pytest.approx((50, 100, 0))
    assert (found["coco_AP"], found["coco_AP50"], found["coco_AP75"]) == pytest.approx((50, 100, 0))


def test_an_overlap_of_exactly_what_is_asked_for_is_enough() -> None:
    """10 x 5 in 10 x 10: .5. The devkit's pixels 1 to 10 and 1 to 5: 10 x 5 shared, 10 x 10 in all."""
    assert scores(Drawn([(A, CAT)]), (0, (0, 0, 10, 5), CAT, 0.9))["AP50"] == 100
    # Apart by 10 both ways: nothing shared, and not -10 x -10.
    assert scores(Drawn([(A, CAT)]), (0, (20, 20, 30, 30), CAT, 0.9))["AP50"] == 0


def test_a_second_hit_of_a_truth_is_wrong() -> None:
    """Two objects; right, again the same, right: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: 6 points with 1, 5 with 2/3."""
    data = Drawn([(A, CAT), (B, CAT)])
    found = scores(data, (0, A, CAT, 0.9), (0, A, CAT, 0.8), (0, B, CAT, 0.7))
    assert found["AP50"] == pytest.approx(100 * (6 * 1 + 5 * 2 / 3) / 11)


def test_a_detection_belongs_to_the_truth_that_it_overlaps_most() -> None:
    """Truths at 0 to 10 and 4 to 14. The second detection, 1 to 11, overlaps them by 9/11 and 7/13: the devkit has it hit the first
    again, wrong, recall stays 1/2: 6 points with 1. COCO gives it to the second, as the first is taken: all right.
    """
    data = Drawn([(A, CAT), ((4, 0, 14, 10), CAT)])
    found = scores(data, (0, A, CAT, 0.9), (0, (1, 0, 11, 10), CAT, 0.8))
    assert found["AP50"] == pytest.approx(100 * 6 / 11)
    assert found["coco_AP50"] == pytest.approx(100)


def test_difficult_objects_count_neither_way() -> None:
    """One object and a difficult one, which is hit twice first: only the third detection counts, and is right."""
    data = Drawn([(A, CAT), (B, CAT, True)])
    found = scores(data, (0, B, CAT, 0.9), (0, B, CAT, 0.8), (0, A, CAT, 0.7))
    assert (found["AP50"], found["AP"], found["coco_AP"]) == pytest.approx((100, 100, 100))
    # Not found, they are no loss either.
    assert scores(data, (0, A, CAT, 0.7))["AP"] == pytest.approx(100)
    # 10 x 3 of the difficult one is wrong: its IoU is .3. To COCO it lies in a crowd, whole.
    found = scores(data, (0, (20, 0, 30, 3), CAT, 0.9), (0, A, CAT, 0.7))
    assert (found["AP50"], found["coco_AP50"]) == pytest.approx((50, 100))
    # Most overlapped is the difficult one: the other is not found, although by .6 it could be.
    near = Drawn([(A, CAT), ((2.5, 0, 12.5, 10), CAT, True)])
    assert scores(near, (0, (2.5, 0, 12.5, 10), CAT, 0.9))["AP50"] == 0


def test_equal_scores_come_by_image_and_then_as_they_stand() -> None:
    """One object. Wrong and right, equally sure: the one in the earlier image comes first, so precision is 1/2 or 1."""
    wrong, right = (0, FAR, CAT, 0.5), (1, A, CAT, 0.5)
    assert scores(Drawn([(B, DOG)], [(A, CAT)]), right, wrong)["AP50_cat"] == pytest.approx(50)
    wrong, right = (1, FAR, CAT, 0.5), (0, A, CAT, 0.5)
    assert scores(Drawn([(A, CAT)], [(B, DOG)]), wrong, right)["AP50_cat"] == pytest.approx(100)
    wrong, right = (0, FAR, CAT, 0.5), (0, A, CAT, 0.5)
    assert scores(Drawn([(A, CAT)]), wrong, right)["AP50"] == pytest.approx(50)
    assert scores(Drawn([(A, CAT)]), right, wrong)["AP50"] == pytest.approx(100)


def test_classes() -> None:
    """Cats all found, dogs not at all; there is only a difficult eel: it has no score, and the mean is of two classes."""
    data = Drawn([(A, CAT)], [(A, DOG), (FAR, EEL, True)])
    found = scores(data, (0, A, CAT, 0.9), (0, FAR, EEL, 0.8), (1, FAR, EEL, 0.7))
    assert (found["AP50_cat"], found["AP50_dog"], found["AP50"]) == pytest.approx((100, 0, 50))
    assert "AP50_eel" not in found
    assert found["coco_AP50"] == pytest.approx(50)
    # A cat where there are none but dogs: wrong, behind or before the right one.
    assert scores(data, (0, A, CAT, 0.9), (1, A, CAT, 0.8))["AP50_cat"] == pytest.approx(100)
    assert scores(data, (0, A, CAT, 0.7), (1, A, CAT, 0.8))["AP50_cat"] == pytest.approx(50)


def test_no_detection_at_all() -> None:
    found = scores(Drawn([(A, CAT)], [(B, DOG)]))
    assert set(found) == {"AP", "AP50", "AP75", "coco_AP", "coco_AP50", "coco_AP75", "AP50_cat", "AP50_dog"}
    assert set(found.values()) == {0.0}


def test_nothing_to_score() -> None:
    with pytest.raises(ValueError, match="none of the 2 images has an object that is not difficult"):
        scores(Drawn([(A, CAT, True)], [(B, DOG, True)]), (0, A, CAT, 0.9))


def test_without_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    require_pycocotools()
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ValueError, match=r'not installed; pip install "fastpsl\[transfer\]"'):
        require_pycocotools()


def test_at_most_a_hundred_of_a_class_in_an_image_count_for_coco() -> None:
    """A hundred wrong ones before the right one, which VOC's sees: precision 1/101."""
    wrong = [(0, FAR, CAT, 0.9)] * 100
    found = scores(Drawn([(A, CAT)]), *wrong, (0, A, CAT, 0.1))
    assert (found["AP50"], found["coco_AP50"]) == pytest.approx((100 / 101, 0))


def random_boxes(rng: np.random.Generator, num: int) -> np.ndarray:
    """Whole pixels, so that overlaps are often exactly equal."""
    corners = rng.integers(0, 4, (num, 2))
    return np.concatenate([corners, corners + rng.integers(6, 10, (num, 2))], 1).astype(np.float64)


def by_the_devkit(found: Boxes, truth: Boxes, label: int, iou: float) -> float:
    """VOCevaldet's rules in plain loops, on pixels from 1 on, both ends counted."""

    def pixels(box: np.ndarray) -> list[float]:
        return [box[0] + 1, box[1] + 1, box[2], box[3]]

    mine = [i for i in range(len(found.image)) if found.labels[i] == label]
    mine.sort(key=lambda i: (-found.scores[i], found.image[i], i))
    theirs = [j for j in range(len(truth.image)) if truth.labels[j] == label]
    num_true = sum(not truth.difficult[j] for j in theirs)
    taken, right, wrong, curve = set[int](), 0, 0, []
    for i in mine:
        best, of = -np.inf, -1
        a = pixels(found.boxes[i])
        for j in theirs:
            b = pixels(truth.boxes[j])
            width = min(a[2], b[2]) - max(a[0], b[0]) + 1
            height = min(a[3], b[3]) - max(a[1], b[1]) + 1
            if truth.image[j] == found.image[i] and width > 0 and height > 0:
                areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
                overlap = width * height / (sum(areas) - width * height)
                if overlap > best:
                    best, of = overlap, j
        if best >= iou and truth.difficult[of]:
            continue
        if best >= iou and of not in taken:
            taken.add(of)
            right += 1
        else:
            wrong += 1
        curve.append((right, right / (right + wrong)))
    # right / num_true >= k / 10
    points = [max((p for hits, p in curve if 10 * hits >= k * num_true), default=0.0) for k in range(11)]
    return sum(points) / 11


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_devkits_rules_in_plain_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num, num_true, num_classes = 300, 90, 3

    def boxes(num: int, scores: np.ndarray, difficult: np.ndarray) -> Boxes:
        return Boxes(
            rng.integers(0, 20, num), random_boxes(rng, num), rng.integers(0, num_classes, num), scores, difficult
        )  # fmt: skip

    # Scores of one digit: many are equal.
    found = boxes(num, rng.integers(0, 10, num).astype(np.float32) / 10, np.zeros(num, bool))
    truth = boxes(num_true, np.ones(num_true, np.float32), rng.random(num_true) < 0.3)
    ap = voc_ap(found, truth, num_classes)
    for t in (0, 1, 5):
        for label in range(num_classes):
            assert ap[t, label] == pytest.approx(by_the_devkit(found, truth, label, IOUS[t]), abs=1e-12)
    assert 0.05 < ap[0].min() and ap[5].min() < ap[0].max() < 0.95


@pytest.mark.parametrize("seed", range(4))
def test_it_is_cocos_where_nothing_is_difficult_and_nothing_hit_twice(seed: int) -> None:
    """Truths far from each other, at most one detection near each: there the two differ in their points of recall alone."""
    rng = np.random.default_rng(seed)
    num_images, num_classes = 12, 4
    rows = []
    for image in range(num_images):
        for place in rng.permutation(16)[:10]:
            x, y = 50.0 * (place % 4), 50.0 * (place // 4)
            truth_there, found_there = rng.random(2) < (0.7, 0.8)
            box = np.array([x, y, x, y]) + [*rng.uniform(0, 6, 2), *rng.uniform(30, 42, 2)]
            moved = box + rng.uniform(-6, 6, 4)
            label, score = rng.integers(num_classes), np.float32(rng.random())
            rows.append((image, box, moved, label, score, truth_there, found_there))

    def boxes(which: int, column: int) -> Boxes:
        kept = [row for row in rows if row[which]]
        return Boxes(
            np.array([row[0] for row in kept]), np.array([row[column] for row in kept]), np.array([row[3] for row in kept]),
            np.array([row[4] for row in kept], np.float32), np.zeros(len(kept), bool),
        )  # fmt: skip

    truth, found = boxes(5, 1), boxes(6, 2)
    ours = voc_ap(found, truth, num_classes).mean(1)
    assert ours == pytest.approx(coco_ap(found, truth, num_images, num_classes, POINTS), abs=1e-9)
    assert 0.3 < ours[0] < 0.95 and ours[-1] < 0.3
