"""Test figures of pseudo-labels against plain loops, the warning of a collapse, and the curves."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import normalized_mutual_info_score

from fastpsl.tasks.pseudo_labels.scores import (
    Settling,
    class_entropy,
    collapse_warning,
    draw_label_curves,
    label_figures,
)

NAMES = [
    "non_empty",
    "entropy",
    "entropy_share",
    "biggest",
    "nmi_previous",
    "nmi_previous_shuffled",
    "nmi_true",
    "nmi_true_shuffled",
]


def random_labels(num: int, num_classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, num_classes, num).astype(np.int32)


def figures_of(labels: np.ndarray, num_classes: int) -> dict[str, float | None]:
    return label_figures(labels, None, None, num_classes, seed=0)


def test_figures_are_those_of_plain_loops() -> None:
    labels, previous, true = (
        random_labels(400, 30, 1) // 2,
        random_labels(400, 30, 2),
        random_labels(400, 5, 3),
    )
    previous[:300] = labels[:300]
    labels[::2] = true[::2]
    figures = label_figures(labels, previous, true, 30, seed=4)
    assert list(figures) == NAMES
    shares = [(labels == k).mean() for k in range(30) if (labels == k).any()]
    entropy = -sum(share * math.log(share) for share in shares)
    assert figures["non_empty"] == len(shares) == 15
    assert figures["entropy"] == pytest.approx(entropy)
    assert figures["entropy_share"] == pytest.approx(entropy / math.log(30))
    assert figures["biggest"] == max(shares)
    assert figures["nmi_previous"] == pytest.approx(normalized_mutual_info_score(previous, labels))
    assert figures["nmi_true"] == pytest.approx(normalized_mutual_info_score(true, labels))
    by_chance = figures["nmi_previous_shuffled"]
    assert by_chance is not None and figures["nmi_previous"] is not None
    assert 0 < by_chance < figures["nmi_previous"] / 2
    shuffled = figures["nmi_true_shuffled"]
    assert shuffled is not None and figures["nmi_true"] is not None and 0 < shuffled < figures["nmi_true"] / 3


@pytest.mark.parametrize(
    ("shares", "warned_at"),
    [
        ([0.24] * 20, [10, 20]),
        ([0.4] * 5 + [0.24] * 5 + [0.3] * 5 + [0.31] * 5, [10]),
        ([0.24] * 9, []),
        ([0.5] * 20, []),
        ([0.1] * 5 + [0.11] * 5, []),
        ([0.9] * 5 + [0.49] * 5, [10]),
    ],
)
def test_labels_that_do_not_settle_are_warned_of_every_ten_epochs(
    shares: list[float], warned_at: list[int]
) -> None:
    settling, chance = Settling(), 0.2
    assert settling.see({"nmi_previous": None, "nmi_previous_shuffled": None}) is None
    warnings = [
        settling.see({"nmi_previous": chance + (1 - chance) * share, "nmi_previous_shuffled": chance})
        for share in shares
    ]
    assert [epoch for epoch, text in enumerate(warnings, start=1) if text] == warned_at
    assert settling.shares == pytest.approx(shares)
    if warned_at:
        text = warnings[warned_at[0] - 1]
        assert text and text.startswith(
            f"unsettled: labels agree with those of the epoch before by {shares[9]:.0%}"
        )


def test_labels_that_agree_by_half_or_by_chance_alone_are_settled() -> None:
    settling = Settling()
    for value, chance in ((0.5, 0.0),) * 10 + ((1.0, 1.0),):  # of one class, chance is 1
        assert settling.see({"nmi_previous": value, "nmi_previous_shuffled": chance}) is None
    assert settling.shares == [0.5] * 10 + [1.0]


def test_shuffled_labels_are_a_function_of_the_seed() -> None:
    labels, true = random_labels(400, 30, 1), random_labels(400, 5, 3)
    before = labels.copy()
    values = [label_figures(labels, None, true, 30, seed)["nmi_true_shuffled"] for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    assert np.array_equal(labels, before)


def test_without_true_or_previous_labels_their_figures_are_none() -> None:
    labels = random_labels(40, 3, 1)
    for true in (None, np.full(40, -1)):
        figures = label_figures(labels, None, true, 3, seed=0)
        assert [name for name in NAMES if figures[name] is None] == NAMES[4:]
    some = np.where(np.arange(40) < 30, labels, -1)
    assert label_figures(labels, None, some, 3, seed=0)["nmi_true"] == pytest.approx(1)


def test_the_entropy_of_classes() -> None:
    """Also of one image, of none and of all."""
    assert class_entropy(np.array([1, 0, 3])) == pytest.approx(math.log(4) / 4 + 3 * math.log(4 / 3) / 4)
    assert class_entropy(np.array([0, 5])) == 0


def test_one_class() -> None:
    one = figures_of(np.zeros(10, np.int32), 100)
    assert (one["non_empty"], one["entropy"], one["entropy_share"], one["biggest"]) == (1, 0, 0, 1)
    assert math.copysign(1, one["entropy"] or 0) == 1
    assert figures_of(np.zeros(10, np.int32), 1)["entropy_share"] == 1
    assert figures_of(np.arange(10) // 8, 2)["entropy_share"] == pytest.approx(0.7219, abs=1e-4)
    json.dumps(one)  # so the numbers are not numpy's


def test_even_labels_are_no_collapse() -> None:
    for num, num_classes in ((30_000, 3000), (600, 10), (160, 8), (10, 1), (500, 100)):
        assert collapse_warning(figures_of(np.arange(num) % num_classes, num_classes), num_classes) is None
        labels = random_labels(num, num_classes, 1)
        assert collapse_warning(figures_of(labels, num_classes), num_classes) is None


@pytest.mark.parametrize(
    ("share", "num_classes", "expected"),
    [
        (0.12, 1000, True),
        (0.09, 1000, False),  # less than a tenth, though 90 times its even share
        (0.12, 100, False),  # 12 times its even share
        (0.25, 100, True),
        (0.5, 10, False),
        (0.95, 10, True),  # by the entropy
    ],
)
def test_a_class_that_grows_too_big(share: float, num_classes: int, expected: bool) -> None:
    rest = np.arange(round(100_000 * (1 - share))) % (num_classes - 1) + 1
    labels = np.concatenate([np.zeros(100_000 - len(rest), np.int64), rest])
    warning = collapse_warning(figures_of(labels, num_classes), num_classes)
    assert (warning is not None) == expected
    if warning is not None:
        assert warning.startswith("collapse: ") and "\n" not in warning and f"{100 * share:.1f} %" in warning


def test_the_limits_themselves_are_no_collapse() -> None:
    for num_classes, biggest, share in ((1000, 0.1, 0.9), (80, 0.25, 0.9), (80, 0.01, 0.5)):
        figures = {"entropy_share": share, "biggest": biggest, "non_empty": 70.0}
        assert collapse_warning(figures, num_classes) is None


def test_few_classes_that_hold_all() -> None:
    """50 of 3,000 even classes have less than half of the maximal entropy, 60 have more."""
    for num, expected in ((50, True), (60, False)):
        labels = np.arange(30_000) % num
        warning = collapse_warning(figures_of(labels, 3000), 3000)
        assert (warning is not None) == expected
        assert not warning or f"{num} classes have images" in warning


def line(epoch: int, **figures: Any) -> dict[str, Any]:
    values = dict.fromkeys(NAMES, 0.5) | {"non_empty": 100.0, "biggest": 0.01}
    return {"run_step": 10 * epoch, "stage": "S1", "epoch": epoch, **values, **figures}


def write(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "epochs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))


@pytest.mark.parametrize("num", [1, 3, 500])
def test_curves_are_drawn_of_any_number_of_epochs(tmp_path: Path, num: int) -> None:
    """The first epoch has no previous labels."""
    write(tmp_path, [line(epoch, nmi_previous=None if epoch == 0 else 0.4) for epoch in range(num)])
    path = draw_label_curves(tmp_path)
    assert path == tmp_path / "labels.png"
    with Image.open(path) as image:
        assert image.format == "PNG" and image.size == (960, 1260)
        assert np.asarray(image.convert("L")).std() > 10


def test_curves_show_the_values(tmp_path: Path) -> None:
    """A chart of one epoch has a mark, and other values change the chart."""
    images = []
    for share in (0.2, 0.9):
        write(tmp_path, [line(0, entropy_share=share, nmi_true=None, nmi_true_shuffled=None)])
        assert draw_label_curves(tmp_path) is not None
        images.append(np.asarray(Image.open(tmp_path / "labels.png").convert("RGB")).astype(int))
    changed = np.abs(images[0] - images[1]).sum(2) > 60
    assert 40 < changed.sum() < 2_000


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert draw_label_curves(tmp_path) is None
    write(tmp_path, [])
    assert draw_label_curves(tmp_path) is None
    write(tmp_path, [{"run_step": 1, "stage": "S1", "epoch": 0, "other": 3.0}])  # another task's figures
    assert draw_label_curves(tmp_path) is None and not (tmp_path / "labels.png").exists()
    write(tmp_path, [{"run_step": 1, "stage": "S1", "epoch": 0, "other": 3.0}, line(1)])
    assert draw_label_curves(tmp_path) is not None
