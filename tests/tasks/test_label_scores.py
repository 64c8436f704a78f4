"""Scores and figures of labels, compared with scikit-learn, plain loops and what runs record."""

import json
import math
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import normalized_mutual_info_score

from fastpsl.tasks.pseudo_labels.scores import (
    Settling,
    ari,
    class_entropies,
    class_entropy,
    collapse_warning,
    draw_label_curves,
    hungarian_accuracy,
    label_figures,
    many_to_one_accuracy,
    nmi,
)

SCORES = (nmi, ari, hungarian_accuracy, many_to_one_accuracy)


def random_labels(num: int, num_classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, num_classes, num).astype(np.int32)


def nmi_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    num = len(a)
    of_a, of_b = Counter(a.tolist()), Counter(b.tolist())
    of_both = Counter(zip(a.tolist(), b.tolist(), strict=True))
    entropies = [-sum(n / num * math.log(n / num) for n in sizes.values()) for sizes in (of_a, of_b)]
    shared = sum(n / num * math.log(n * num / (of_a[x] * of_b[y])) for (x, y), n in of_both.items())
    return 2 * shared / sum(entropies)


def ari_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    """Count pairs of samples that are together in both labellings, in one or in none."""
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    in_a = sum(a[i] == a[j] for i, j in pairs)
    in_b = sum(b[i] == b[j] for i, j in pairs)
    in_both = sum(a[i] == a[j] and b[i] == b[j] for i, j in pairs)
    expected = in_a * in_b / len(pairs)
    return (in_both - expected) / ((in_a + in_b) / 2 - expected)


def accuracy_by_hand(labels: np.ndarray, true: np.ndarray, num_classes: int) -> float:
    """Try all assignments of pseudo-classes to different true classes or to none (numbers past the last)."""
    num_true = int(true.max()) + 1
    names = range(max(num_true, num_classes))
    best = max(sum(way[x] == y for x, y in zip(labels, true, strict=True)) for way in permutations(names))
    return best / len(true)


def many_to_one_by_hand(labels: np.ndarray, true: np.ndarray) -> float:
    """Count each pseudo-class's most frequent true class."""
    right = 0
    for number in set(labels.tolist()):
        right += Counter(true[labels == number].tolist()).most_common(1)[0][1]
    return right / len(true)


@pytest.mark.parametrize(("num_classes", "num_true"), [(2, 2), (3, 6), (6, 3), (5, 5), (1, 4), (6, 1)])
def test_scores_are_those_of_plain_loops(num_classes: int, num_true: int) -> None:
    true = random_labels(60, num_true, 1)
    labels = np.where(random_labels(60, 2, 2) > 0, true % num_classes, random_labels(60, num_classes, 3))
    labels = labels.astype(np.int32)
    assert nmi(labels, true) == pytest.approx(nmi_by_hand(labels, true), abs=1e-12)
    assert ari(labels, true) == pytest.approx(ari_by_hand(labels, true), abs=1e-12)
    assert hungarian_accuracy(labels, true) == pytest.approx(accuracy_by_hand(labels, true, num_classes))
    assert many_to_one_accuracy(labels, true) == pytest.approx(many_to_one_by_hand(labels, true))
    assert many_to_one_accuracy(labels, true) >= hungarian_accuracy(labels, true)


def test_a_table_by_hand() -> None:
    """Classes have 4 and 2 samples; pseudo-classes hold 3 + 0, 1 + 1 and 0 + 1 of them.

    The best matching has 3 + 1.
    """
    true, labels = np.array([0, 0, 0, 0, 1, 1]), np.array([7, 7, 7, 3, 3, 5])
    assert hungarian_accuracy(labels, true) == 4 / 6
    assert many_to_one_accuracy(labels, true) == 5 / 6
    greedy = np.array([0] * 5 + [1] * 4), np.array([0] * 5 + [0] * 4)
    assert hungarian_accuracy(greedy[1], greedy[0]) == 5 / 9
    # The most frequent classes would give 5 + 0 or 4 + 4.
    true, labels = np.array([0] * 5 + [1] * 4 + [0] * 4), np.array([0] * 9 + [1] * 4)
    assert hungarian_accuracy(labels, true) == 8 / 13
    assert many_to_one_accuracy(labels, true) == 9 / 13


def test_seventy_clusters_of_ten_classes() -> None:
    """SSL++, Table XIII has 54.4 %.

    Pure clusters cannot reach that one-to-one, and have 100 % many-to-one.
    """
    true = np.repeat(np.arange(10), 700)
    labels = np.arange(7000) // 100
    assert hungarian_accuracy(labels, true) == pytest.approx(10 / 70)
    assert many_to_one_accuracy(labels, true) == 1
    assert many_to_one_accuracy(np.arange(7000), true) == 1
    assert many_to_one_accuracy(np.zeros(7000, int), true) == 0.1


@pytest.mark.parametrize("score", SCORES)
def test_names_of_classes_do_not_matter(score) -> None:  # type: ignore[no-untyped-def]
    true, labels = random_labels(500, 7, 1), random_labels(500, 11, 2)
    labels[:300] = true[:300]
    renamed = np.random.default_rng(3).permutation(1000)[labels]
    assert score(renamed, true) == pytest.approx(score(labels, true), abs=1e-12)
    assert 0.1 < score(labels, true) < 0.9
    assert score(true[::-1] * 10 + 3, true[::-1]) == pytest.approx(1)


def test_labels_drawn_at_random() -> None:
    true = random_labels(20_000, 10, 1)
    for num_classes in (10, 1000):
        assert abs(ari(random_labels(20_000, num_classes, 2), true)) < 0.002
    assert hungarian_accuracy(random_labels(20_000, 10, 2), true) == pytest.approx(0.1, abs=0.02)
    # Many classes alone raise NMI, so reports have that of shuffled labels, too.
    assert nmi(random_labels(20_000, 10, 2), true) < 0.002
    assert nmi(random_labels(20_000, 1000, 2), true) > 0.04


@pytest.mark.parametrize("score", SCORES)
def test_samples_without_a_true_label_are_left_out(score) -> None:  # type: ignore[no-untyped-def]
    true, labels = random_labels(300, 5, 1), random_labels(300, 4, 2)
    labels[:200] = true[:200] % 4
    some = true.copy()
    some[::3] = -1
    has_label = some >= 0
    assert score(labels, some) == score(labels[has_label], true[has_label])
    assert score(labels, some) != score(labels, true)
    for absent in (np.full(300, -1), None):
        with pytest.raises(ValueError, match="^true labels absent$"):
            score(labels, absent)


@pytest.mark.parametrize("score", SCORES)
def test_no_samples_and_one_sample(score) -> None:  # type: ignore[no-untyped-def]
    assert score(np.array([3]), np.array([0])) == 1
    with pytest.raises(ValueError, match="^true labels absent$"):
        score(np.empty(0, np.int32), np.empty(0, np.int32))


def test_as_many_as_imagenet_has() -> None:
    """1.3 million labels with 10,000 × 1,000 classes; the dense table takes 80 MB here."""
    num, num_classes, num_true = 1_300_000, 10_000, 1_000
    true = np.sort(random_labels(num, num_true, 1))
    labels = np.where(
        random_labels(num, 4, 2) > 0,
        true * 10 + random_labels(num, 10, 3),
        random_labels(num, num_classes, 4),
    ).astype(np.int32)
    counts = np.bincount(true.astype(np.int64) * num_classes + labels, minlength=num_true * num_classes)
    table = counts.reshape(num_true, num_classes)
    rows, columns = linear_sum_assignment(table, maximize=True)
    assert hungarian_accuracy(labels, true) == table[rows, columns].sum() / num
    assert many_to_one_accuracy(labels, true) == table.max(0).sum() / num
    assert nmi(labels, true) == pytest.approx(normalized_mutual_info_score(true, labels))
    together = [(n.astype(float) * (n - 1) / 2).sum() for n in (table, table.sum(0), table.sum(1))]
    expected = together[1] * together[2] / (num * (num - 1) / 2)
    most = (together[1] + together[2]) / 2
    assert ari(labels, true) == pytest.approx((together[0] - expected) / (most - expected))


def test_entropies_within_classes() -> None:
    """Classes are pure, even over two, by hand over three, unlabelled or empty."""
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3])
    true = np.array([5, 5, -1, 0, 7, 7, 0, 1, 1, 2, 0, -1, -1])
    entropies = class_entropies(labels, true, 5)
    assert entropies[:3].tolist() == pytest.approx([0, math.log(2), 1.5 * math.log(2)])
    assert np.isnan(entropies[3:]).all() and len(entropies) == 5
    # Mutual information is the entropy of all minus the mean entropy within the classes.
    true, labels = random_labels(1000, 7, 1), random_labels(1000, 40, 2)
    labels[:500] = true[:500]
    shares, within = np.bincount(labels, minlength=40) / 1000, class_entropies(labels, true, 40)
    of_all = [-(share * np.log(share)).sum() for share in (np.bincount(true) / 1000, shares[shares > 0])]
    assert nmi(labels, true) == pytest.approx(2 * (of_all[0] - (shares * within).sum()) / sum(of_all))


NAMES = [
    "non_empty", "entropy", "entropy_share", "biggest", "nmi_previous", "nmi_previous_shuffled", "nmi_true",
    "nmi_true_shuffled",
]  # fmt: skip


def figures_of(labels: np.ndarray, num_classes: int) -> dict[str, float | None]:
    return label_figures(labels, None, None, num_classes, seed=0)


def test_figures_are_those_of_plain_loops() -> None:
    labels, previous = random_labels(400, 30, 1) // 2, random_labels(400, 30, 2)
    true = random_labels(400, 5, 3)
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
        assert text
        assert text.startswith(f"unsettled: labels agree with those of the epoch before by {shares[9]:.0%}")


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
