"""Test boxes: proposals of published files, and scores by hand, by the devkit's rules and by COCOeval."""

import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from fastpsl.console.installed import install
from fastpsl.pipelines.datasets.voc.annotations import Objects
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.embedded.draw_voc import draw_voc
from fastpsl.pipelines.interface.dataset import SampleTable
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
from fastpsl.transfer.detection.proposals import Proposals
from tests.pipelines.published_files import old_pickle

IDS = ("000005", "000007", "2008_000002")
WIDTH, HEIGHT = 500, 375


class NamedImages:
    """A stand-in for VOC with images of 500 x 375 px."""

    split = "2007_trainval+2012_trainval"

    def __init__(self, *ids: str):
        self.ids, self.num_samples = ids, len(ids)

    def image_id(self, index: int) -> str:
        return self.ids[index]

    def rows(self, indices: np.ndarray) -> SampleTable:
        rows = SampleTable.empty(indices)
        rows.height[:], rows.width[:] = HEIGHT, WIDTH
        return rows


def opened(data: NamedImages, *paths: Path | str, **options: int) -> Proposals:
    stands_for_voc: Any = data
    return Proposals(paths, stands_for_voc, **options)


# In VOC's form, pixels from 1 with both ends inside: the whole image, and the pixel in its first corner.
PIXELS = np.array([[1, 1, HEIGHT, WIDTH], [1, 1, 1, 1], [10, 21, 30, 62]], np.float64)
BOXES = [[0, 0, WIDTH, HEIGHT], [0, 0, 1, 1], [20, 9, 62, 30]]


def cells(values: list[Any], by_row: bool) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape((1, -1) if by_row else (-1, 1))


def write_mat(
    path: Path, ids: tuple[str, ...] = IDS, by_row: bool = False, boxes: list[Any] | None = None
) -> Path:
    boxes = [PIXELS] * len(ids) if boxes is None else boxes
    savemat(path, {"images": cells(list(ids), by_row), "boxes": cells(boxes, not by_row)})
    return path


def write_pkl(path: Path, protocol: int = 2, **parts: Any) -> Path:
    """Write a file of more images than IDS, in another order."""
    whole = {
        "boxes": [np.array(BOXES, np.float32)] * 4,
        "scores": [np.array([0.5, 0.9, 0.5], np.float32)] * 4,
        "ids": [2008000002, 5, 99, 7],
        "cfg": "MODEL: {}",
    }
    path.write_bytes(pickle.dumps(whole | parts, protocol))
    return path


@pytest.mark.parametrize("by_row", (False, True))
def test_selective_search(tmp_path: Path, by_row: bool) -> None:
    """Read 1-based y1 x1 y2 x2 with both ends inside, in rows or columns of cells, of too many images."""
    path = write_mat(tmp_path / "a.mat", (*IDS[::-1], "000009"), by_row)
    proposals = opened(NamedImages(*IDS), path)
    for i in range(3):
        boxes = proposals.boxes(i)
        assert boxes.dtype == np.float32 and boxes.flags.writeable and boxes.tolist() == BOXES


def test_which_image_is_which(tmp_path: Path) -> None:
    boxes = [np.array([[1, 1, n, n]]) for n in (3, 4, 5)]
    path = write_mat(tmp_path / "a.mat", (IDS[1], IDS[2], IDS[0]), boxes=boxes)
    proposals = opened(NamedImages(*IDS), path)
    assert [proposals.boxes(i).tolist() for i in range(3)] == [[[0, 0, n, n]] for n in (5, 3, 4)]


def test_kinds_of_cells(tmp_path: Path) -> None:
    """Check names in nested cells or in one character array, integer boxes, and an image without boxes."""
    names = [cells([name], True) for name in ("000005", "000007")]
    for number, images in enumerate((cells(names, True), np.array(["000005", "000007"]))):
        path = tmp_path / f"{number}.mat"
        savemat(path, {"images": images, "boxes": cells([PIXELS.astype(np.uint16), np.zeros((0, 0))], True)})
        proposals = opened(NamedImages(*IDS[:2]), str(path))
        assert proposals.boxes(0).tolist() == BOXES
        assert proposals.boxes(1).shape == (0, 4) and proposals.boxes(1).dtype == np.float32


@pytest.mark.parametrize("protocol", (0, 2, 4, 5))
def test_detectrons(tmp_path: Path, protocol: int) -> None:
    """Check the order by falling score, ids as numbers or names, and older and newer names of the parts."""
    by_score = [BOXES[1], BOXES[0], BOXES[2]]
    paths = [write_pkl(tmp_path / "a.pkl", protocol)]
    ids = ["2008_000002", "000005", b"99", np.int64(7)]
    scores = [np.array([0.5, 0.9, 0.5])] * 4
    several: list[dict[str, Any]] = [
        {"indexes": [2008000002, 5, 99, 7]}, {"ids": ids}, {"objectness_logits": scores, "bbox_mode": 0}
    ]  # fmt: skip
    for number, parts in enumerate(several):
        whole = pickle.loads(paths[0].read_bytes())
        whole.pop("ids" if "indexes" in parts else "scores" if "objectness_logits" in parts else "cfg")
        paths.append(tmp_path / f"{number}.pkl")
        paths[-1].write_bytes(pickle.dumps(whole | parts, protocol))
    for path in paths:
        proposals = opened(NamedImages(*IDS), path)
        assert [proposals.boxes(i).tolist() for i in range(3)] == [by_score] * 3
        assert opened(NamedImages(*IDS), path, max_num=2).boxes(1).tolist() == by_score[:2]


def test_python_2s(tmp_path: Path) -> None:
    """Check that strings of bytes are read, as cPickle wrote them."""
    boxes, scores = np.array([[1, 2, 3, 4]], np.float32), np.array([1], np.float32)
    path = tmp_path / "a.pkl"
    path.write_bytes(old_pickle({b"boxes": [boxes], b"scores": [scores], b"indexes": [7]}))
    assert opened(NamedImages("000007"), path).boxes(0).tolist() == [[1, 2, 3, 4]]


def test_at_most_so_many(tmp_path: Path) -> None:
    many = np.tile(PIXELS, (700, 1))
    path = write_mat(tmp_path / "a.mat", boxes=[many] * 3)
    assert len(opened(NamedImages(*IDS), path).boxes(2)) == 2000
    assert len(opened(NamedImages(*IDS), path, max_num=7).boxes(2)) == 7


def test_several_files(tmp_path: Path) -> None:
    paths = write_mat(tmp_path / "a.mat", IDS[:2]), write_mat(tmp_path / "b.mat", IDS[2:])
    assert opened(NamedImages(*IDS), *paths).boxes(2).tolist() == BOXES
    with pytest.raises(ValueError, match=r"b\.mat: holds proposals for 5 a second time"):
        opened(NamedImages(*IDS), paths[0], write_mat(tmp_path / "b.mat"))


def test_the_drawn_ones(tmp_path: Path) -> None:
    """Check that each object has proposals that overlap it by half."""
    folder = draw_voc(tmp_path / "VOCdevkit", 4, 2)
    data = VOC(folder, ("2007_trainval",), "boxes")
    proposals = Proposals([folder / "proposals" / "voc_2007_trainval.mat"], data)
    for i in range(4):
        boxes, objects = proposals.boxes(i), data.objects(i).boxes
        ends = np.minimum(boxes[:, None, 2:], objects[:, 2:])
        shared = ends - np.maximum(boxes[:, None, :2], objects[:, :2])
        areas = [(some[..., 2:] - some[..., :2]).prod(-1) for some in (boxes, objects)]
        overlap = shared.clip(0).prod(-1)
        ious = overlap / (areas[0][:, None] + areas[1] - overlap)
        assert ((ious >= 0.5).sum(0) >= 3).all() and ious.max() < 0.95


def refused(path: Path | str, data: NamedImages | None = None) -> str:
    with pytest.raises(ValueError) as caught:
        opened(data or NamedImages(*IDS), path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_proposals_for_other_images(tmp_path: Path) -> None:
    path = write_mat(tmp_path / "a.mat")
    assert refused(path, NamedImages("000001", "000002")).endswith(
        "proposals for other images: none of the 2 here, such as 000001; give the files of 2007_trainval "
        "and 2012_trainval"
    )
    message = refused(path, NamedImages(*IDS, "000011", "000012"))
    assert "no proposals for 2 of 5 images, the first is 000011" in message


@pytest.mark.parametrize(
    "pixels",
    (
        [0, 1, 5, 5], [1, 0, 5, 5], [1, 1, HEIGHT + 1, 5], [1, 1, 5, WIDTH + 1], [6, 1, 4, 5], [1, 6, 5, 4],
        [1, 1, np.nan, 5],
    ),
)  # fmt: skip
def test_boxes_outside(tmp_path: Path, pixels: list[float]) -> None:
    boxes = [PIXELS, np.concatenate([PIXELS, [pixels]]), PIXELS]
    message = refused(write_mat(tmp_path / "a.mat", boxes=boxes))
    assert "7: box " in message and "is not inside of the image of 500 x 375 px" in message


def test_files_that_are_none(tmp_path: Path) -> None:
    whole = write_mat(tmp_path / "whole.mat").read_bytes()
    files: dict[str, tuple[str, bytes | Callable[[Path], Any]]] = {
        "no file of proposals; give Fast R-CNN's .mat": ("a.txt", b""),
        "cannot be read as a MATLAB file": ("b.mat", whole[:-50]),
        "lacks the cells images and boxes": (
            "c.mat", lambda path: savemat(path, {"images": cells(["a"], True)}),
        ),
        "3 images and boxes of 2": ("e.mat", lambda path: write_mat(path, boxes=[PIXELS] * 2)),
        "has no name (3.0)": (
            "f.mat",
            lambda path: savemat(path, {"images": cells([3.0], True), "boxes": cells([PIXELS], True)}),
        ),
        "float64 [3, 3] instead of numbers [k, 4]": (
            "g.mat", lambda path: write_mat(path, boxes=[PIXELS[:, :3]] * 3),
        ),
        "is not let in": ("a.pkl", lambda path: write_pkl(path, boxes=[Path])),
        "a pickle that is no dictionary": ("b.pkl", pickle.dumps([1])),
        "lacks boxes, scores and ids (or indexes)": ("c.pkl", lambda path: write_pkl(path, boxes=None)),
        "lists of one length": ("d.pkl", lambda path: write_pkl(path, ids=[5])),
        "bbox_mode 1: only 0": ("e.pkl", lambda path: write_pkl(path, bbox_mode=1)),
        "its scores are not a number for each": (
            "f.pkl", lambda path: write_pkl(path, scores=[np.zeros(2)] * 4),
        ),
    }  # fmt: skip
    for words, (name, how) in files.items():
        path = tmp_path / name
        if isinstance(how, bytes):
            path.write_bytes(how)
        else:
            how(path)
        assert words in refused(path), words
    assert "no such file; give the published proposals" in refused(tmp_path / "none.mat")


def test_equal_scores_stay_in_order(tmp_path: Path) -> None:
    boxes = np.arange(300)[:, None] + np.array([0, 0, 1, 1], np.float32)
    scores = np.tile(np.array([1, 2], np.float32), 150)
    path = write_pkl(tmp_path / "a.pkl", boxes=[boxes] * 4, scores=[scores] * 4)
    expected = [*range(1, 300, 2), *range(0, 300, 2)]
    assert opened(NamedImages(*IDS), path).boxes(0)[:, 0].tolist() == expected


CAT, DOG, EEL = 0, 1, 2
A, B, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (50, 50, 60, 60)


class Drawn:
    """A stand-in for VOC: an object is (box, label), or (box, label, True) if it is difficult."""

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


def predictions_of(*rows: tuple[int, tuple[float, ...], int, float]) -> dict[str, np.ndarray]:
    """Return predictions from rows of (image, box, label, score)."""
    return {
        "image": np.array([row[0] for row in rows], np.int64),
        "boxes": np.array([row[1] for row in rows], np.float32).reshape(-1, 4),
        "labels": np.array([row[2] for row in rows], np.int64),
        "scores": np.array([row[3] for row in rows], np.float32),
    }


def scores(data: Drawn, *rows: tuple[int, tuple[float, ...], int, float]) -> dict[str, float]:
    stands_for_voc: Any = data
    return box_scores(predictions_of(*rows), stands_for_voc)


def test_eleven_points() -> None:
    """Check four objects and four detections: right, wrong, right, right.

    The precision is 1, 1/2, 2/3, 3/4 at recall 1/4, 1/4, 1/2, 3/4. The best precision from a recall on is 1
    at 0, .1, .2 and 3/4 at .3 to .7. Recalls .8, .9 and 1 are not reached.
    """
    data = Drawn([(A, CAT)], [(A, CAT)], [(A, CAT)], [(A, CAT)])
    result = scores(data, (0, A, CAT, 0.9), (1, FAR, CAT, 0.8), (1, A, CAT, 0.7), (2, A, CAT, 0.6))
    assert result["AP50"] == pytest.approx(100 * (3 * 1 + 5 * 0.75 + 3 * 0) / 11)
    assert result["AP50"] == result["AP50_cat"] == result["AP75"] == pytest.approx(result["AP"])
    # Of COCO's 101 points, 26 up to .25 have 1 and 50 up to .75 have 3/4.
    assert result["coco_AP50"] == pytest.approx(100 * (26 * 1 + 50 * 0.75) / 101)


def test_recall_of_exactly_three_tenths_reaches_the_point() -> None:
    """Of ten objects three are found. numpy.arange(0, 1.1, .1) has .30000000000000004, which is more."""
    assert eleven_points(np.ones(3, bool), 10) == pytest.approx(4 / 11)
    assert eleven_points(np.ones(10, bool), 10) == pytest.approx(1)
    assert eleven_points(np.zeros(0, bool), 10) == 0


def test_overlaps() -> None:
    """Check 10 x 7.2 of an object of 10 x 10: IoU .72 is right at .5 to .7 and wrong from .75 on."""
    result = scores(Drawn([(A, CAT)]), (0, (0, 0, 10, 7.2), CAT, 0.9))
    assert (result["AP"], result["AP50"], result["AP75"]) == pytest.approx((50, 100, 0))
    assert (result["coco_AP"], result["coco_AP50"], result["coco_AP75"]) == pytest.approx((50, 100, 0))


def test_an_overlap_of_exactly_what_is_asked_for_is_enough() -> None:
    """10 x 5 in 10 x 10 is .5, also by the devkit's pixels from 1 to 10 and 1 to 5."""
    assert scores(Drawn([(A, CAT)]), (0, (0, 0, 10, 5), CAT, 0.9))["AP50"] == 100
    # Boxes that are 10 apart in both directions share nothing, and not -10 x -10.
    assert scores(Drawn([(A, CAT)]), (0, (20, 20, 30, 30), CAT, 0.9))["AP50"] == 0


def test_a_second_hit_of_a_truth_is_wrong() -> None:
    """Check two objects and three detections: right, the first object again, right.

    The precision is 1, 1/2, 2/3 at recall 1/2, 1/2, 1. 6 points have 1 and 5 have 2/3.
    """
    data = Drawn([(A, CAT), (B, CAT)])
    result = scores(data, (0, A, CAT, 0.9), (0, A, CAT, 0.8), (0, B, CAT, 0.7))
    assert result["AP50"] == pytest.approx(100 * (6 * 1 + 5 * 2 / 3) / 11)


def test_a_detection_belongs_to_the_truth_that_it_overlaps_most() -> None:
    """Check objects at 0 to 10 and 4 to 14.

    The second detection, 1 to 11, overlaps them by 9/11 and 7/13. The devkit assigns it to the first object
    again, so it is wrong and the recall stays 1/2: 6 points have 1. COCO assigns it to the second object,
    because the first is taken: all are right.
    """
    data = Drawn([(A, CAT), ((4, 0, 14, 10), CAT)])
    result = scores(data, (0, A, CAT, 0.9), (0, (1, 0, 11, 10), CAT, 0.8))
    assert result["AP50"] == pytest.approx(100 * 6 / 11)
    assert result["coco_AP50"] == pytest.approx(100)


def test_difficult_objects_count_neither_way() -> None:
    """Check a difficult object that is hit twice first, and another one: only the third detection counts."""
    data = Drawn([(A, CAT), (B, CAT, True)])
    result = scores(data, (0, B, CAT, 0.9), (0, B, CAT, 0.8), (0, A, CAT, 0.7))
    assert (result["AP50"], result["AP"], result["coco_AP"]) == pytest.approx((100, 100, 100))
    # A difficult object that is not found is no loss either.
    assert scores(data, (0, A, CAT, 0.7))["AP"] == pytest.approx(100)
    # 10 x 3 of the difficult one is wrong, because its IoU is .3. For COCO the whole of it lies in a crowd.
    result = scores(data, (0, (20, 0, 30, 3), CAT, 0.9), (0, A, CAT, 0.7))
    assert (result["AP50"], result["coco_AP50"]) == pytest.approx((50, 100))
    # The difficult object is overlapped most. The other one is not found, although its overlap of .6 would
    # do.
    near = Drawn([(A, CAT), ((2.5, 0, 12.5, 10), CAT, True)])
    assert scores(near, (0, (2.5, 0, 12.5, 10), CAT, 0.9))["AP50"] == 0


def test_equal_scores_come_by_image_and_then_as_they_stand() -> None:
    """Of a wrong and a right detection of one object, the one in the earlier image comes first."""
    for images, first, second, expected in (
        (([(B, DOG)], [(A, CAT)]), (1, A), (0, FAR), 50),
        (([(A, CAT)], [(B, DOG)]), (1, FAR), (0, A), 100),
        (([(A, CAT)],), (0, FAR), (0, A), 50),
        (([(A, CAT)],), (0, A), (0, FAR), 100),
    ):
        result = scores(Drawn(*images), (*first, CAT, 0.5), (*second, CAT, 0.5))
        assert result["AP50_cat"] == pytest.approx(expected)


def test_classes() -> None:
    """All cats and no dogs are found. The one eel is difficult: it has no score and no part in the mean."""
    data = Drawn([(A, CAT)], [(A, DOG), (FAR, EEL, True)])
    result = scores(data, (0, A, CAT, 0.9), (0, FAR, EEL, 0.8), (1, FAR, EEL, 0.7))
    assert (result["AP50_cat"], result["AP50_dog"], result["AP50"]) == pytest.approx((100, 0, 50))
    assert "AP50_eel" not in result
    assert result["coco_AP50"] == pytest.approx(50)
    # A cat in an image of dogs alone is wrong, after or before the right one.
    assert scores(data, (0, A, CAT, 0.9), (1, A, CAT, 0.8))["AP50_cat"] == pytest.approx(100)
    assert scores(data, (0, A, CAT, 0.7), (1, A, CAT, 0.8))["AP50_cat"] == pytest.approx(50)


def test_no_detection_at_all() -> None:
    result = scores(Drawn([(A, CAT)], [(B, DOG)]))
    assert set(result) == {"AP", "AP50", "AP75", "coco_AP", "coco_AP50", "coco_AP75", "AP50_cat", "AP50_dog"}
    assert set(result.values()) == {0.0}


def test_nothing_to_score() -> None:
    with pytest.raises(ValueError, match="none of the 2 images has an object that is not difficult"):
        scores(Drawn([(A, CAT, True)], [(B, DOG, True)]), (0, A, CAT, 0.9))


def test_without_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    require_pycocotools()
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ValueError, match="not installed; " + re.escape(install("transfer"))):
        require_pycocotools()


def test_at_most_a_hundred_of_a_class_in_an_image_count_for_coco() -> None:
    """Check a hundred wrong detections before the right one: VOC's precision is 1/101."""
    wrong = [(0, FAR, CAT, 0.9)] * 100
    result = scores(Drawn([(A, CAT)]), *wrong, (0, A, CAT, 0.1))
    assert (result["AP50"], result["coco_AP50"]) == pytest.approx((100 / 101, 0))
    result = scores(Drawn([(A, CAT)]), *wrong[:99], (0, A, CAT, 0.1))
    assert (result["AP50"], result["coco_AP50"]) == pytest.approx((1, 1))


def random_boxes(rng: np.random.Generator, num: int) -> np.ndarray:
    """Return boxes on whole pixels, so that overlaps are often exactly equal."""
    corners = rng.integers(0, 4, (num, 2))
    return np.concatenate([corners, corners + rng.integers(6, 10, (num, 2))], 1).astype(np.float64)


def by_the_devkit(detections: Boxes, truth: Boxes, label: int, iou: float) -> float:
    """Return VOCevaldet's AP in plain loops, on pixels from 1 with both ends counted."""

    def pixels(box: np.ndarray) -> list[float]:
        return [box[0] + 1, box[1] + 1, box[2], box[3]]

    ranked = [i for i in range(len(detections.image)) if detections.labels[i] == label]
    ranked.sort(key=lambda i: (-detections.scores[i], detections.image[i], i))
    objects = [j for j in range(len(truth.image)) if truth.labels[j] == label]
    num_true = sum(not truth.difficult[j] for j in objects)
    taken, right, wrong, curve = set[int](), 0, 0, []
    for i in ranked:
        best, of = -np.inf, -1
        a = pixels(detections.boxes[i])
        for j in objects:
            b = pixels(truth.boxes[j])
            width = min(a[2], b[2]) - max(a[0], b[0]) + 1
            height = min(a[3], b[3]) - max(a[1], b[1]) + 1
            if truth.image[j] == detections.image[i] and width > 0 and height > 0:
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
            rng.integers(0, 20, num), random_boxes(rng, num), rng.integers(0, num_classes, num), scores,
            difficult,
        )  # fmt: skip

    # Scores have one digit, so that many are equal.
    detections = boxes(num, rng.integers(0, 10, num).astype(np.float32) / 10, np.zeros(num, bool))
    truth = boxes(num_true, np.ones(num_true, np.float32), rng.random(num_true) < 0.3)
    ap = voc_ap(detections, truth, num_classes)
    for t in (0, 1, 5):
        for label in range(num_classes):
            assert ap[t, label] == pytest.approx(by_the_devkit(detections, truth, label, IOUS[t]), abs=1e-12)
    assert 0.05 < ap[0].min() and ap[5].min() < ap[0].max() < 0.95


@pytest.mark.parametrize("seed", range(4))
def test_it_is_cocos_where_nothing_is_difficult_and_nothing_hit_twice(seed: int) -> None:
    """Objects are far apart and have at most one detection each; only the points of recall differ."""
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
        selected = [row for row in rows if row[which]]
        return Boxes(
            np.array([row[0] for row in selected]), np.array([row[column] for row in selected]),
            np.array([row[3] for row in selected]), np.array([row[4] for row in selected], np.float32),
            np.zeros(len(selected), bool),
        )  # fmt: skip

    truth, detections = boxes(5, 1), boxes(6, 2)
    voc = voc_ap(detections, truth, num_classes).mean(1)
    assert voc == pytest.approx(coco_ap(detections, truth, num_images, num_classes, POINTS), abs=1e-9)
    assert 0.3 < voc[0] < 0.95 and voc[-1] < 0.3
