"""Test the average precision of each class, by hand and against the formula in plain loops."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastpsl.plots.charts import draw_classes
from fastpsl.transfer.classification.task import label_scores


def ap(scores: list[float], targets: list[int], image: list[int] | None = None) -> float:
    """Return the AP of one class."""
    predictions = {
        "image": np.arange(len(scores)) if image is None else np.array(image),
        "scores": np.array(scores, np.float32).reshape(-1, 1),
    }
    result = label_scores(predictions, np.array(targets, np.int8).reshape(-1, 1), ["cat"])
    assert result.keys() == {"mAP", "AP_cat"} and result["mAP"] == result["AP_cat"]
    return result["AP_cat"] / 100


def test_cases_by_hand() -> None:
    """Check the precision at each right answer, weighted by the recall that it adds."""
    assert ap([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0]) == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert ap([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 0]) == 1, "all right"
    assert ap([0.9, 0.8, 0.7, 0.6], [0, 0, 1, 1]) == pytest.approx(1 / 2 * 1 / 3 + 1 / 2 * 2 / 4), "all wrong"
    assert ap([-3, -2, -1], [1, 1, 1]) == 1, "nothing to confuse"
    assert ap([0.1], [1]) == 1


def test_difficult_images_count_neither_way() -> None:
    assert ap([0.9, 0.8, 0.7, 0.6], [1, -1, 1, 0]) == 1
    assert ap([0.9, 0.8, 0.7, 0.6], [1, -1, 1, 0]) == ap([0.9, 0.7, 0.6], [1, 1, 0])
    assert ap([0.9, 0.8, 0.7, 0.6], [-1, 0, 1, -1]) == 1 / 2


def test_tied_images_come_in_together() -> None:
    """Check that each right answer of a tie has the precision after all of it, in any order of the rows."""
    assert ap([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 1]) == 2 / 4
    for targets in ([1, 1, 0, 0], [1, 0, 1, 0]):
        assert ap([0.9, 0.5, 0.5, 0.1], targets) == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert ap([0.9, 0.9, 0.1], [0, 1, 1]) == pytest.approx(1 / 2 * 1 / 2 + 1 / 2 * 2 / 3)


def test_a_class_without_positives_is_left_out() -> None:
    scores = np.array([[0.9, 0.3, 0.2], [0.8, 0.1, 0.4], [0.1, 0.2, 0.6]], np.float32)
    targets = np.array([[0, 0, 1], [1, 0, -1], [1, -1, 0]], np.int8)
    result = label_scores({"image": np.arange(3), "scores": scores}, targets, ["cat", "dog", "cow"])
    cat, cow = 1 / 2 * 1 / 2 + 1 / 2 * 2 / 3, 1 / 2
    assert result == pytest.approx({"mAP": 50 * (cat + cow), "AP_cat": 100 * cat, "AP_cow": 100 * cow})
    with pytest.raises(ValueError, match="no image of the test set has any class"):
        label_scores({"image": np.arange(3), "scores": scores}, np.minimum(targets, 0), ["cat", "dog", "cow"])


def test_rows_are_those_of_their_images() -> None:
    """Check that skipped images do not count."""
    assert ap([0.9, 0.8], [1, 1, 0, 1, 0], image=[4, 3]) == 1 / 2
    assert ap([0.9, 0.8], [1, 1, 0, 1, 0], image=[3, 4]) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="diverged; lower --lr"):
        ap([0.5, bad], [1, 0])


def by_the_formula(scores: np.ndarray, targets: np.ndarray) -> float:
    """Return the sum over falling thresholds of the precision times the added recall."""
    scores, truth = scores[targets >= 0], targets[targets >= 0]
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        is_above = scores >= threshold
        recall = truth[is_above].sum() / truth.sum()
        total += (recall - before) * truth[is_above].mean()
        before = recall
    return 100 * total


def test_many_images_agree_with_the_formula() -> None:
    random = np.random.default_rng(0)
    scores = random.integers(0, 40, (200, 5)).astype(np.float32)  # many ties
    targets = random.choice(np.array([-1, 0, 1], np.int8), (200, 5), p=[0.1, 0.7, 0.2])
    names = [f"c{i}" for i in range(5)]
    result = label_scores({"image": np.arange(200), "scores": scores}, targets, names)
    expected = [by_the_formula(scores[:, i], targets[:, i]) for i in range(5)]
    assert [result[f"AP_{name}"] for name in names] == pytest.approx(expected)
    assert result["mAP"] == pytest.approx(np.mean(expected))


def test_the_figure_grows_with_the_classes(tmp_path: Path) -> None:
    heights = []
    for num in (1, 20):
        numbers = {"mAP": 50.0} | {f"AP_class {i}": 5.0 * i for i in range(num)}
        with Image.open(
            draw_classes(numbers, tmp_path / f"{num}.png", "classification/deepcluster")
        ) as image:
            heights.append(image.size[1])
    assert heights[1] > 2 * heights[0]
