"""Permutation sets have the distances that are documented, are nested and are the same every time."""

import hashlib
import itertools
import math

import numpy as np
import pytest

from fastpsl.kernels import permutations
from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.kernels.permutations import (
    greedy_permutations,
    hamming_bound,
    mean_hamming,
    minimum_hamming,
    permutation_set,
    projective_permutations,
)


def distances(rows):
    pairs = itertools.combinations(rows.tolist(), 2)
    return [sum(a != b for a, b in zip(p, q, strict=True)) for p, q in pairs]


def best_mean(num, num_pieces):
    """Return the largest possible mean: all pieces are in each place equally often, give or take one."""
    low, more = divmod(num, num_pieces)
    agreements = num_pieces * (more * (low + 1) ** 2 + (num_pieces - more) * low**2)
    return (num * num * num_pieces - agreements) / (num * (num - 1))


def assert_permutations(rows, num_pieces):
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(num_pieces), (len(rows), 1)))
    assert len(np.unique(rows, axis=0)) == len(rows) and rows.dtype == np.int64


def test_measures_equal_plain_loops():
    rows = np.stack([np.random.default_rng(i).permutation(7) for i in range(40)])
    assert minimum_hamming(rows) == min(distances(rows))
    assert mean_hamming(rows) == pytest.approx(np.mean(distances(rows)), abs=1e-12)
    assert minimum_hamming(np.array([[0, 1, 2], [0, 1, 2]])) == mean_hamming(np.array([[0, 1], [0, 1]])) == 0
    assert hamming_bound(500, 9) == 8 * 500 / 499 and hamming_bound(2, 9) == 9


@pytest.mark.parametrize("count, minimum, mean", [(500, 7, 8.016), (1000, 6, 8.008), (2000, 4, 8.004)])
def test_nine_pieces_of_the_paper(count, minimum, mean):
    sets = permutation_set(9, (500, 1000, 2000))
    assert sets.counts == (500, 1000, 2000) and sets.permutations.shape == (2000, 9)
    rows = sets.permutations[:count]
    assert_permutations(rows, 9)
    assert min(distances(rows[:300])) >= minimum
    assert minimum_hamming(rows) == minimum
    assert mean_hamming(rows) == pytest.approx(best_mean(count, 9), abs=1e-12)
    assert round(mean_hamming(rows), 3) == mean == round(hamming_bound(count, 9), 3)


@pytest.mark.parametrize(
    "count, minimum", [(2, 9), (9, 9), (100, 7), (504, 7), (1512, 6), (16_632, 4), (18_000, 3)]
)
def test_other_counts_of_nine(count, minimum):
    rows = projective_permutations(count)
    assert_permutations(rows, 9)
    assert minimum_hamming(rows) == minimum
    assert mean_hamming(rows) == pytest.approx(best_mean(count, 9), abs=1e-12)


def test_504_is_a_group_that_moves_any_three_points_anywhere_in_one_way():
    rows = projective_permutations(504)
    members = set(map(tuple, rows.tolist()))
    for p, q in itertools.product(rows[:40], rows[::13]):
        assert tuple(p[q].tolist()) in members
    assert len({tuple(row) for row in rows[:, [0, 4, 8]].tolist()}) == 504 == 9 * 8 * 7


def test_nested_and_repeatable():
    whole = permutation_set(9, [100, 18_000]).permutations
    np.testing.assert_array_equal(permutation_set(9, [2000]).permutations, whole[:2000])
    np.testing.assert_array_equal(greedy_permutations(16, 60)[:20], greedy_permutations(16, 20))
    np.testing.assert_array_equal(greedy_permutations(6, 60)[:20], greedy_permutations(6, 20))


def test_the_rows_are_frozen():
    """A label is a row's number, so a checkpoint depends on these rows in this order."""
    rows = permutation_set(9, [2000]).permutations
    rows_as_text = ["".join(map(str, row)) for row in rows[:3].tolist()]
    assert rows_as_text == ["012345678", "123708456", "237516084"]
    assert (
        hashlib.sha256(rows.astype(np.uint8).tobytes()).hexdigest()
        == "124b9365a9152cdcb84238a9934bbe336e752047c462434a66158c6486a61710"
    )
    rows = permutation_set(16, [100]).permutations
    assert (
        hashlib.sha256(rows.astype(np.uint8).tobytes()).hexdigest()
        == "8f792efab09890ae5142266349f9c41340978e0d4e3c1ac842bf528f454fbec1"
    )


def greedy_in_plain_loops(candidates, count):
    chosen = [candidates[0]]
    while len(chosen) < count:
        scores = []
        for candidate in candidates:
            to_chosen = [sum(a != b for a, b in zip(candidate, other, strict=True)) for other in chosen]
            scores.append((min(to_chosen), sum(to_chosen)))
        chosen.append(candidates[scores.index(max(scores))])
    return np.array(chosen)


@pytest.mark.parametrize("num_pieces, count", [(2, 2), (3, 6), (4, 24), (5, 40)])
def test_greedy_equals_the_loop(num_pieces, count):
    rows = permutation_set(num_pieces, [count]).permutations
    assert_permutations(rows, num_pieces)
    candidates = list(itertools.permutations(range(num_pieces)))
    np.testing.assert_array_equal(rows, greedy_in_plain_loops(candidates, count))


def test_greedy_among_eight_times_as_many_candidates_as_are_wanted(monkeypatch):
    """If n! is more, candidates are drawn: as many as the pool has, or 8 for each that is wanted."""
    monkeypatch.setattr(permutations, "_POOL", 30)
    for count, num_candidates in ((3, 30), (6, 48)):
        keys = Keys(seed=0, epoch=0, indices=np.arange(num_candidates, dtype=np.int64))
        drawn = np.argsort(words(keys, Slot.PERMUTATION, 11), axis=1, kind="stable")
        candidates = sorted({tuple(range(11)), *map(tuple, drawn.tolist())})
        expected = greedy_in_plain_loops(candidates, count)
        np.testing.assert_array_equal(greedy_permutations(11, count), expected)


def test_greedy_of_nine():
    rows = greedy_permutations(9, 2000)
    assert_permutations(rows, 9)
    assert [minimum_hamming(rows[:count]) for count in (500, 1000, 2000)] == [5, 5, 4]
    assert mean_hamming(rows) > 8.003


@pytest.mark.parametrize("num_pieces, minimum", [(16, 12), (25, 21)])
def test_many_pieces_from_a_pool(num_pieces, minimum):
    rows = permutation_set(num_pieces, [50, 200]).permutations
    assert_permutations(rows, num_pieces)
    assert minimum_hamming(rows) >= minimum
    assert mean_hamming(rows) > num_pieces - 1


@pytest.mark.parametrize(
    "num_pieces, counts, message",
    [
        (3, [7], "counts 7 given for 3 pieces; allowed are 2 to 6"),
        (9, [500, 362_881], "allowed are 2 to 362,880"),
        (9, [1], "counts 1 given"),
        (9, [], r"counts \(none\) given"),
        (25, [0], "allowed are 2 to 25!"),
        (1, [2], "1 pieces given; allowed are 2 to 255"),
        (256, [2], "256 pieces given"),
    ],
)
def test_impossible_counts(num_pieces, counts, message):
    assert math.factorial(9) == 362_880
    with pytest.raises(ValueError, match=message):
        permutation_set(num_pieces, counts)
