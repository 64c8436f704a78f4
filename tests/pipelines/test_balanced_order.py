"""The balanced order: every class occurs equally often, and its members as evenly as possible."""

import numpy as np
import pytest

from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.pipelines.loader.order import balanced_order, epoch_order, num_steps, step_indices

GOLDEN = [4, 5, 5, 0, 1, 4, 4, 2]


def some_labels(num_samples: int, num_classes: int, seed: int) -> np.ndarray:
    """Draw labels of classes with very different sizes; some may be empty."""
    return (num_classes * np.random.default_rng(seed).random(num_samples) ** 3).astype(np.int32)


def in_plain_loops(labels: list[int], seed: int, epoch: int) -> list[int]:
    """Compute the order in plain loops, as the docstring of `balanced_order` describes it."""

    def key(number: int, first_word: int) -> list[int]:
        return words(Keys(seed, epoch, np.array([number])), Slot.BALANCE, 4)[0, first_word:][:2].tolist()

    classes = sorted(set(labels))
    draws, rest = divmod(len(labels), len(classes))
    once_more = sorted(classes, key=lambda number: key(number, 2))[:rest]
    drawn = []
    for number in classes:
        members = sorted((i for i, label in enumerate(labels) if label == number), key=lambda i: key(i, 0))
        rounds, extra = divmod(draws + (number in once_more), len(members))
        for place, member in enumerate(members):
            drawn += [member] * (rounds + (place < extra))
    return [drawn[place] for place in epoch_order(seed, epoch, len(labels))]


@pytest.mark.parametrize(
    "num_samples, num_classes", [(1, 1), (2, 9), (40, 6), (97, 10), (60, 200), (500, 30)]
)
def test_it_is_what_plain_loops_make(num_samples: int, num_classes: int) -> None:
    labels = some_labels(num_samples, num_classes, 0)
    order = balanced_order(labels, 2**40 + 3, 5)
    assert order.dtype == np.int64
    assert order.tolist() == in_plain_loops(labels.tolist(), 2**40 + 3, 5)


@pytest.mark.parametrize("num_classes", [1, 7, 100, 3000])
def test_classes_and_their_members_are_drawn_equally_often(num_classes: int) -> None:
    labels = some_labels(5003, num_classes, 1)
    times = np.bincount(balanced_order(labels, 0, 0), minlength=5003)
    assert times.sum() == 5003
    classes = np.unique(labels)
    of_class = np.bincount(labels, weights=times)[classes]
    draws, rest = divmod(5003, len(classes))
    assert sorted(set(of_class)) == ([draws] if rest == 0 else [draws, draws + 1])
    assert (of_class == draws + 1).sum() == rest
    for number in classes:
        members = times[labels == number]
        assert members.max() - members.min() <= 1


def test_one_class_alone_and_classes_of_one_are_drawn_once_each() -> None:
    one_each = np.random.default_rng(0).permutation(4 * np.arange(50))  # with empty classes in between
    for labels in (np.zeros(50, np.int64), np.full(50, 8), one_each):
        assert sorted(balanced_order(labels, 0, 0)) == list(range(50))


def test_it_repeats_by_its_arguments_and_differs_by_each() -> None:
    labels = some_labels(500, 10, 2)
    order = balanced_order(labels, 5, 0)
    assert (order == balanced_order(labels.astype(np.int64), 5, 0)).all()  # the dtype does not matter
    other_labels = labels.copy()
    other_labels[:10] = labels[10:20]
    for other in (
        balanced_order(labels, 5, 1),
        balanced_order(labels, 6, 0),
        balanced_order(other_labels, 5, 0),
    ):
        assert (order == other).mean() < 0.9
        assert (np.bincount(order, minlength=500) != np.bincount(other, minlength=500)).any()


def test_the_order_never_changes_between_versions() -> None:
    # Resuming relies on these values. They come from balanced_order when it was written.
    assert balanced_order(np.array([0, 0, 0, 0, 2, 3, 0, 0]), 1, 2).tolist() == GOLDEN


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_steps_of_one(world: int) -> None:
    order = balanced_order(some_labels(200, 10, 3), 0, 0)
    for step in range(num_steps(200, 12, train=True)):
        parts = [step_indices(order, step, 12 // world, rank, world) for rank in range(world)]
        assert np.concatenate(parts).tolist() == step_indices(order, step, 12, 0, 1).tolist()


def test_chance_favours_no_member_no_class_and_no_place() -> None:
    labels = np.repeat([0, 1, 2], [3, 7, 13])  # 23 draws: 7 per class, and one more for 2 of the 3 classes
    orders = [balanced_order(labels, 1, epoch) for epoch in range(1500)]
    times = np.stack([np.bincount(order, minlength=23) for order in orders])
    of_class = np.stack([times[:, labels == number].sum(1) for number in range(3)], 1)
    assert np.abs((of_class == 8).mean(0) - 2 / 3).max() < 0.05  # the standard deviation is 0.012
    for number in range(3):
        members = times[:, labels == number]
        # Each member gets an extra draw equally often; standard deviations are at most 0.013.
        assert np.abs(members.mean(0) - members.mean()).max() < 0.05
        # The extra draws of an epoch are independent of each other: 7 or 8 of 13 members.
        if number == 2:
            together = np.asarray(np.corrcoef(members.T))[~np.eye(13, dtype=bool)]
            assert np.abs(together - -1 / 12).max() < 0.12
    places = np.stack([labels[order] for order in orders])
    shares = np.stack([(places == number).mean(0) for number in range(3)])
    assert np.abs(shares - 1 / 3).max() < 0.06


def test_labels_that_are_missing_are_our_mistake() -> None:
    for labels in (np.array([0, -1, 1]), np.zeros(0, np.int32)):
        with pytest.raises(AssertionError, match="labels are missing"):
            balanced_order(labels, 0, 0)
