"""The order of an epoch: a permutation by (seed, epoch) alone, and its slices, shared by the ranks."""

import numpy as np
import pytest

from fastpsl.pipelines.loader import order as order_module
from fastpsl.pipelines.loader.order import (
    PADDING,
    InOrder,
    KeyedPermutation,
    Order,
    epoch_order,
    index_of,
    num_steps,
    numbered,
    step_indices,
)

NUM, GLOBAL_BATCH = 103, 12
GOLDEN = [[2, 8, 0, 5, 9, 7, 6, 3, 4, 1], [3, 9, 4, 1, 8, 2, 5, 6, 0, 7]]


def steps_by_rank(order: np.ndarray, world: int, train: bool) -> list[list[np.ndarray]]:
    """Return the indices of each rank at each step."""
    batch = GLOBAL_BATCH // world
    steps = range(num_steps(len(order), GLOBAL_BATCH, train))
    return [[step_indices(order, step, batch, rank, world) for rank in range(world)] for step in steps]


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


@pytest.mark.parametrize("world", [1, 2, 3])
def test_training_sees_each_position_once_and_drops_the_remainder(world: int) -> None:
    order = epoch_order(0, 4, NUM)
    steps = steps_by_rank(order, world, train=True)
    indices = np.concatenate([part for ranks in steps for part in ranks])
    assert len(steps) == NUM // GLOBAL_BATCH
    assert indices.tolist() == order[: len(steps) * GLOBAL_BATCH].tolist()


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("train", [True, False])
def test_the_global_batch_of_a_step_is_the_same_for_any_number_of_ranks(world: int, train: bool) -> None:
    order = epoch_order(0, 4, NUM)
    alone = steps_by_rank(order, 1, train)
    together = steps_by_rank(order, world, train)
    assert len(alone) == len(together)
    for (whole,), parts in zip(alone, together, strict=True):
        assert np.concatenate(parts).tolist() == whole.tolist()
        assert all(len(part) == GLOBAL_BATCH // world for part in parts)


@pytest.mark.parametrize("world", [64, 256])
@pytest.mark.parametrize("order", [epoch_order(1, 2, 3001), KeyedPermutation(1, 2, 3001), InOrder(3001)])
def test_many_ranks_see_each_position_once(order: Order, world: int) -> None:
    for train in (True, False):
        steps = range(num_steps(3001, 4 * world, train))
        parts = [step_indices(order, step, 4, rank, world) for step in steps for rank in range(world)]
        expected = order[: len(parts) * 4].tolist()
        assert np.concatenate(parts).tolist() == expected + [PADDING] * (len(parts) * 4 - len(expected))
        assert len(expected) == (3001 // (4 * world) * 4 * world if train else 3001)


def test_another_remainder_is_dropped_each_epoch() -> None:
    num_used = NUM // GLOBAL_BATCH * GLOBAL_BATCH
    dropped = [frozenset(epoch_order(0, epoch, NUM)[num_used:]) for epoch in range(5)]
    assert len(set(dropped)) == 5


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("num", [1, 12, 97, 103])
def test_evaluation_sees_all_once_and_pads_at_the_end(world: int, num: int) -> None:
    steps = steps_by_rank(np.arange(num), world, train=False)
    indices = np.concatenate([part for ranks in steps for part in ranks])
    assert indices.tolist() == [*range(num), *[PADDING] * (-num % GLOBAL_BATCH)]


def test_one_sample_a_step() -> None:
    order = epoch_order(0, 0, 5)
    assert [step_indices(order, step, 1, 0, 1).tolist() for step in range(5)] == [[i] for i in order]


def test_the_times_that_an_index_stands_in_an_order_are_numbered() -> None:
    order = np.array([3, 0, 3, 7, PADDING, 3, 0, PADDING, 2**39])
    numbers = numbered(order)
    assert numbers.dtype == np.int64
    assert numbers.tolist() == [3, 0, 3 + 2**40, 7, -1, 3 + 2**41, 2**40, -1, 2**39]
    assert index_of(numbers).tolist() == order.tolist()
    once = epoch_order(0, 0, 50)
    assert numbered(once).tolist() == once.tolist() == index_of(once).tolist()
    assert numbered(np.zeros(0, np.int64)).tolist() == []
