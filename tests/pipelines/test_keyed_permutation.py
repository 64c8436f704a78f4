"""The permutation that is computed: a bijection, uniform, of golden values, in the memory of a batch."""

import numpy as np
import pytest
from scipy import stats

from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.pipelines.datasets.subset import Synthetic
from fastpsl.pipelines.loader import order as order_module
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.loader.order import MAX_SORTED, KeyedPermutation, epoch_order, training_order
from fastpsl.pipelines.views import ViewSpec
from tests.pipelines.memory import printed_by

BILLION = 10**9
# Resuming relies on these values. They come from KeyedPermutation when the format was fixed.
GOLDEN = {
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
    for key, expected in GOLDEN.items():
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
    others = [
        KeyedPermutation(5, 1, 1000),
        KeyedPermutation(6, 0, 1000),
        KeyedPermutation(2**32 + 5, 0, 1000),
    ]
    for other in (*(each[:] for each in others), np.arange(1000)):
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
