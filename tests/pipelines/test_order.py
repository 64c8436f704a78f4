"""Orders of samples: permutations by a key, balanced ones, and their steps on any number of ranks."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.loader import order as order_module
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.loader.order import (
    MAX_SORTED,
    PADDING,
    InOrder,
    KeyedPermutation,
    Order,
    balanced_order,
    epoch_order,
    index_of,
    num_steps,
    numbered,
    step_indices,
    training_order,
)
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.memory import printed_by

NUM = 103
GOLDEN = [[2, 8, 0, 5, 9, 7, 6, 3, 4, 1], [3, 9, 4, 1, 8, 2, 5, 6, 0, 7]]


def test_an_order_is_a_permutation_that_repeats_by_seed_and_differs_by_epoch() -> None:
    first = epoch_order(5, 0, NUM)
    assert first.dtype == np.int64
    assert sorted(first) == list(range(NUM))
    assert (first == epoch_order(5, 0, NUM)).all()
    for other in (epoch_order(5, 1, NUM), epoch_order(6, 0, NUM), np.arange(NUM)):
        assert (first == other).mean() < 0.1


def test_the_order_never_changes_between_versions() -> None:
    # Resuming relies on these values. They come from epoch_order when the format was fixed.
    assert epoch_order(0, 0, 10).tolist() == GOLDEN[0]
    assert epoch_order(2**40 + 7, 3, 10).tolist() == GOLDEN[1]


def test_every_place_is_equally_likely() -> None:
    places = np.stack([np.argsort(epoch_order(1, epoch, 20)) for epoch in range(800)])
    # 800 draws of a place from 0 to 19: a mean of 9.5 +- 0.2, and counts of 40 +- 6.2 (standard deviations).
    assert np.abs(places.mean(0) - 9.5).max() < 1.0
    counts = np.stack([np.bincount(places[:, i], minlength=20) for i in range(20)])
    assert 12 < counts.min() and counts.max() < 72


def test_the_block_of_work_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = epoch_order(3, 2, NUM)
    monkeypatch.setattr(order_module, "_BLOCK", 10)
    assert (epoch_order(3, 2, NUM) == whole).all()


def balanced(seed: int, epoch: int, num: int) -> Order:
    return balanced_order(some_labels(num, 10, 3), seed, epoch)


def in_order(seed: int, epoch: int, num: int) -> Order:
    return InOrder(num)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("make", [epoch_order, balanced, KeyedPermutation, in_order])
@pytest.mark.parametrize(
    ("num", "batch", "worlds"),
    [(1, 12, (1, 2, 3, 4)), (12, 12, (1, 2, 3, 4)), (97, 12, (1, 2, 3, 4)), (NUM, 12, (1, 2, 3, 4)),
     (200, 12, (2, 3)), (5, 1, (1,)), (3001, 256, (64,)), (3001, 1024, (256,))],
)  # fmt: skip
def test_a_step_is_a_part_of_the_order_on_any_number_of_ranks(
    num: int, batch: int, worlds: tuple[int, ...], make: Callable[[int, int, int], Order], train: bool
) -> None:
    """Training drops the remainder, and evaluation pads it at its end."""
    order = make(1, 2, num)
    expected = order[:].tolist()
    expected = expected[: num // batch * batch] if train else expected + [PADDING] * (-num % batch)
    for world in worlds:
        parts = [
            step_indices(order, step, batch // world, rank, world)
            for step in range(num_steps(num, batch, train))
            for rank in range(world)
        ]
        assert {len(part) for part in parts} <= {batch // world}
        assert [index for part in parts for index in part.tolist()] == expected


def test_another_remainder_is_dropped_each_epoch() -> None:
    dropped = [frozenset(epoch_order(0, epoch, NUM)[96:]) for epoch in range(5)]
    assert len(set(dropped)) == 5


def test_the_times_that_an_index_stands_in_an_order_are_numbered() -> None:
    order = np.array([3, 0, 3, 7, PADDING, 3, 0, PADDING, 2**39])
    numbers = numbered(order)
    assert numbers.dtype == np.int64
    assert numbers.tolist() == [3, 0, 3 + 2**40, 7, -1, 3 + 2**41, 2**40, -1, 2**39]
    assert index_of(numbers).tolist() == order.tolist()
    once = epoch_order(0, 0, 50)
    assert numbered(once).tolist() == once.tolist() == index_of(once).tolist()
    assert numbered(np.zeros(0, np.int64)).tolist() == []


GOLDEN_BALANCED = [4, 5, 5, 0, 1, 4, 4, 2]


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
    for arguments in ((labels, 5, 1), (labels, 6, 0), (other_labels, 5, 0)):
        other = balanced_order(*arguments)
        assert (order == other).mean() < 0.9
        assert (np.bincount(order, minlength=500) != np.bincount(other, minlength=500)).any()


def test_a_balanced_order_never_changes_between_versions() -> None:
    # Resuming relies on these values. They come from balanced_order when it was written.
    assert balanced_order(np.array([0, 0, 0, 0, 2, 3, 0, 0]), 1, 2).tolist() == GOLDEN_BALANCED


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


BILLION = 10**9
# Resuming relies on these values. They come from KeyedPermutation when the format was fixed.
GOLDEN_KEYED = {
    (0, 0, 10): [6, 0, 7, 1, 8, 3, 2, 4, 5, 9],
    (2**40 + 7, 3, 10): [4, 0, 2, 3, 5, 6, 9, 1, 7, 8],
}
PLACES = [0, 1, 2, BILLION - 1]
GOLDEN_BILLION = [684297350, 973094782, 843743751, 714135609]


def value_at(seed: int, epoch: int, num: int, position: int) -> int:
    """Return a permutation's value by a plain loop over its eight rounds."""
    num_left = next(side for side in range(1, num + 1) if side * side >= num)
    num_right = -(-num // num_left)
    while True:
        left, right = divmod(position, num_right)
        for number in range(8):
            by, modulus = (right, num_left) if number % 2 == 0 else (left, num_right)
            word = int(words(Keys(seed, epoch, np.array([by]), number), Slot.KEYED_ORDER, 1)[0, 0])
            shift = word * modulus >> 32
            if number % 2 == 0:
                left = (left + shift) % num_left
            else:
                right = (right + shift) % num_right
        position = left * num_right + right
        if position < num:
            return position


@pytest.mark.parametrize("num", [1, 2, 3, 4, 5, 7, 12, 103, 1000, 2**16 - 1, 2**16, 2**16 + 1, 300_007])
def test_each_index_stands_at_one_position(num: int) -> None:
    permutation = KeyedPermutation(3, 5, num)
    values = permutation[:]
    assert len(permutation) == num and values.dtype == np.int64
    assert (np.bincount(values, minlength=num) == 1).all() and len(values) == num


def test_the_permutation_never_changes_between_versions() -> None:
    for key, expected in GOLDEN_KEYED.items():
        assert KeyedPermutation(*key)[:].tolist() == expected
    assert KeyedPermutation(5, 2, BILLION)[np.array(PLACES)].tolist() == GOLDEN_BILLION


@pytest.mark.parametrize("num", [3, 20, 103])
def test_values_are_those_of_a_plain_loop(num: int) -> None:
    permutation = KeyedPermutation(2**40 + 1, 7, num)
    assert permutation[:].tolist() == [value_at(2**40 + 1, 7, num, i) for i in range(num)]


def test_any_positions_can_be_read() -> None:
    permutation = KeyedPermutation(1, 2, 1000)
    whole = permutation[:]
    assert permutation[130:150].tolist() == whole[130:150].tolist()
    assert permutation[990:2000].tolist() == whole[990:].tolist()
    assert permutation[1000:1010].tolist() == []
    places = np.array([7, 999, 0, 7])
    assert permutation[places].tolist() == whole[places].tolist()
    with pytest.raises(AssertionError):
        permutation[np.array([1000])]


def test_it_differs_by_epoch_and_seed() -> None:
    first = KeyedPermutation(5, 0, 1000)[:]
    assert (first == KeyedPermutation(5, 0, 1000)[:]).all()
    others = [KeyedPermutation(*key, 1000)[:] for key in ((5, 1), (6, 0), (2**32 + 5, 0))]
    for other in (*others, np.arange(1000)):
        assert (first == other).mean() < 0.01


@pytest.mark.parametrize("num", [2, 3, 5, 20, 103])
def test_every_place_and_every_neighbour_is_equally_likely(num: int) -> None:
    """Chi-square over 2,000 keys of fixed seeds, at p above 1e-4."""
    num_keys = 2000
    orders = np.stack([KeyedPermutation(1, epoch, num)[:] for epoch in range(num_keys)])
    counts = np.stack([np.bincount(orders[:, i], minlength=num) for i in range(num)])
    expected = num_keys / num
    places = ((counts - expected) ** 2 / expected).sum()
    assert 1e-4 < stats.chi2.sf(places, (num - 1) ** 2)
    if num > 2:  # the distance from one value to the next, modulo num, is 1 to num - 1
        steps = np.bincount((np.diff(orders, axis=1) % num).ravel(), minlength=num)[1:]
        assert 1e-4 < stats.chisquare(steps).pvalue


def test_three_samples_have_all_six_orders_equally_often() -> None:
    orders = [tuple(KeyedPermutation(0, epoch, 3)[:].tolist()) for epoch in range(3000)]
    counts = [orders.count(order) for order in sorted(set(orders))]
    assert len(counts) == 6 and 1e-4 < stats.chisquare(counts).pvalue


def test_a_billion_is_uniform_and_not_correlated() -> None:
    values = KeyedPermutation(0, 0, BILLION)[500_000_000:500_200_000]
    assert len(np.unique(values)) == len(values)
    assert 1e-4 < stats.chisquare(np.bincount(values // 10**7, minlength=100)).pvalue
    pairs = values[:-1] // 10**8 * 10 + values[1:] // 10**8
    assert 1e-4 < stats.chisquare(np.bincount(pairs, minlength=100)).pvalue
    assert 1e-4 < stats.chisquare(np.bincount(values % 97, minlength=97)).pvalue


def test_a_billion_takes_the_memory_of_a_batch() -> None:
    script = """
import sys
from fastpsl.pipelines.loader.order import step_indices, training_order
order = training_order(0, 0, 1000)
before = peak_mib()
order = training_order(7, 3, 10**9)
for step in (0, 1_000_000, 3_906_249):
    step_indices(order, step, 256, 0, 1)
print(peak_mib() - before)
"""
    (grown_mib,) = printed_by(script)
    assert grown_mib < 8  # a table has 7,600


def test_the_order_is_computed_above_a_size_that_depends_on_the_data_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert isinstance(training_order(0, 0, MAX_SORTED + 1), KeyedPermutation)
    monkeypatch.setattr(order_module, "MAX_SORTED", 100)
    assert training_order(4, 1, 100)[:].tolist() == epoch_order(4, 1, 100).tolist()
    assert training_order(4, 1, 101)[:].tolist() == KeyedPermutation(4, 1, 101)[:].tolist()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_loader_follows_it_on_any_number_of_ranks(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_module, "MAX_SORTED", 100)
    expected = KeyedPermutation(9, 2, 103)[:96].reshape(8, world, 12 // world)
    view = ViewSpec(ShorterSideCrop(8, 8))
    for rank in range(world):
        with Loader(
            Synthetic(103), [view], batch_size_per_rank=12 // world, seed=9, rank=rank, world=world,
            decoder="synthetic", num_threads=1,
        ) as loader:  # fmt: skip
            batches = [batch.indices.tolist() for batch in loader.epoch(2)]
            resumed = [batch.indices.tolist() for batch in loader.epoch(2, 5)]
        assert batches == expected[:, rank].tolist()
        assert resumed == batches[5:]
