"""Test scores of pseudo-labels against tables by hand, plain loops, scipy and scikit-learn."""

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import normalized_mutual_info_score

from fastpsl.tasks.pseudo_labels.scores import (
    ari,
    class_entropies,
    hungarian_accuracy,
    many_to_one_accuracy,
    nmi,
)

SCORES = (nmi, ari, hungarian_accuracy, many_to_one_accuracy)


def random_labels(num: int, num_classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, num_classes, num).astype(np.int32)


def nmi_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    num = len(a)
    of_a, of_b, of_both = (
        Counter(a.tolist()),
        Counter(b.tolist()),
        Counter(zip(a.tolist(), b.tolist(), strict=True)),
    )
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
    labels = np.where(
        random_labels(60, 2, 2) > 0, true % num_classes, random_labels(60, num_classes, 3)
    ).astype(np.int32)
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
    assert (
        nmi(random_labels(20_000, 10, 2), true) < 0.002 and nmi(random_labels(20_000, 1000, 2), true) > 0.04
    )


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
    assert ari(labels, true) == pytest.approx(
        (together[0] - expected) / ((together[1] + together[2]) / 2 - expected)
    )


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
