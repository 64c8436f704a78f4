"""No class is empty after a split; who moves is random and independent of the order of the images."""

import numpy as np
import pytest

from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.kernels.empty_classes import split_empty

GOLDEN = [3, 0, 2, 1, 4, 0, 2, 1]


def in_plain_loops(labels: list[int], num_classes: int, seed: int, epoch: int) -> tuple[list[int], int]:
    """Split as the docstring of `split_empty` describes, in plain loops."""
    labels = list(labels)
    num_splits = 0
    while empty := [number for number in range(num_classes) if number not in labels]:
        biggest = max(range(num_classes), key=lambda number: (labels.count(number), -number))
        members = [i for i, label in enumerate(labels) if label == biggest]
        members.sort(key=lambda i: words(Keys(seed, epoch, np.array([i])), Slot.SPLIT, 2)[0].tolist())
        for i in members[-(len(members) // 2) :]:
            labels[i] = empty[0]
        num_splits += 1
    return labels, num_splits


@pytest.mark.parametrize("num_samples", [1, 2, 7, 30, 61])
def test_it_is_what_plain_loops_make(num_samples: int) -> None:
    random = np.random.default_rng(num_samples)
    for num_classes in {1, 2, num_samples // 2 + 1, num_samples}:
        if num_classes > num_samples:
            continue
        for power in (1, 4):
            labels = (num_classes * random.random(num_samples) ** power).astype(np.int64)
            new_labels, num_splits = split_empty(labels, num_classes, 9, 4)
            expected, num_expected = in_plain_loops(labels.tolist(), num_classes, 9, 4)
            assert new_labels.dtype == np.int32
            assert (new_labels.tolist(), num_splits) == (expected, num_expected)


@pytest.mark.parametrize("num_samples, num_classes", [(1000, 1000), (1000, 999), (4096, 64), (5000, 700)])
def test_all_images_in_one_class(num_samples: int, num_classes: int) -> None:
    labels = np.full(num_samples, num_classes - 1)
    new_labels, num_splits = split_empty(labels, num_classes, 0, 0)
    sizes = np.bincount(new_labels, minlength=num_classes)
    assert num_splits == num_classes - 1
    assert sizes.min() >= 1 and sizes.max() <= 2 * sizes.min()


def test_nothing_to_split_changes_nothing() -> None:
    labels = np.array([2, 0, 1, 1, 1], np.int64)
    new_labels, num_splits = split_empty(labels, 3, 0, 0)
    assert new_labels.dtype == np.int32 and new_labels.tolist() == labels.tolist() and num_splits == 0
    new_labels[0] = 1
    assert labels[0] == 2  # the result is a copy, also for int32
    same = labels.astype(np.int32)
    split_empty(same, 3, 0, 0)[0][0] = 1
    assert same[0] == 2


def test_what_is_given_is_left_as_it_is() -> None:
    labels = np.zeros(9, np.int32)
    split_empty(labels, 4, 0, 0)
    assert not labels.any()


def test_halves_and_ties() -> None:
    new_labels, _ = split_empty(np.zeros(7, np.int64), 2, 0, 0)
    assert np.bincount(new_labels).tolist() == [4, 3]
    # Among equally big classes the lowest is split: 1, then 3, then 0, which is as big by then. The lowest
    # empty class is filled first.
    new_labels, num_splits = split_empty(np.repeat([1, 3], 6), 5, 0, 0)
    assert num_splits == 3
    assert np.bincount(new_labels[:6], minlength=5).tolist() == [2, 3, 0, 0, 1]
    assert np.bincount(new_labels[6:], minlength=5).tolist() == [0, 0, 3, 3, 0]


def test_it_repeats_by_its_arguments_and_differs_by_each() -> None:
    labels = np.zeros(200, np.int64)
    new_labels = split_empty(labels, 2, 3, 1)[0]
    assert (new_labels == split_empty(labels, 2, 3, 1)[0]).all()
    for seed, epoch in ((3, 2), (4, 1)):
        assert 0.3 < (new_labels == split_empty(labels, 2, seed, epoch)[0]).mean() < 0.7


def test_the_splits_never_change_between_versions() -> None:
    # A resumed run depends on these values, which split_empty gave when it was written.
    assert split_empty(np.array([0, 0, 2, 0, 0, 0, 2, 0]), 5, 1, 2)[0].tolist() == GOLDEN


def test_a_split_tells_nothing_of_the_order_in_the_set() -> None:
    """Folders are sorted by class, so halves of a class by index would be the true classes."""
    true = np.repeat(np.arange(10), 50)
    for num_classes in (2, 5, 10):
        new_labels = np.stack(
            [split_empty(np.zeros(500, int), num_classes, 0, epoch)[0] for epoch in range(300)]
        )
        share = np.mean([[(row[true == each] == 0).mean() for each in range(10)] for row in new_labels], 0)
        # Every true class is in class 0 as often as in the mean, with a deviation of 0.004.
        assert np.abs(share - (new_labels == 0).mean()).max() < 0.02
        together = np.mean(new_labels[:, :-1] == new_labels[:, 1:])  # neighbours
        apart = np.mean(new_labels[:, :250] == new_labels[:, 250:])
        assert abs(together - apart) < 0.02


def test_fewer_images_than_classes_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^9 images cannot fill 1,000 classes; give --num-clusters 9 or less"
    ):
        split_empty(np.zeros(9, np.int64), 1000, 0, 0)


@pytest.mark.parametrize("labels", [[0, -1, 1], [0, 3, 1]])
def test_labels_that_are_no_classes_are_our_mistake(labels: list[int]) -> None:
    with pytest.raises(AssertionError):
        split_empty(np.array(labels), 3, 0, 0)
