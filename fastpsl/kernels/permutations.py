"""Permutation sets for jigsaw puzzles: nested, and far apart in Hamming distance.

The smallest distance in a set decides how hard its puzzles are. The mean is close to n - 1 for any set,
because two random permutations of n agree in one place on average. For N permutations it is at most (n - 1) N
/ (N - 1).

For nine pieces the set comes from group theory. The pieces are the points of the projective line over GF(8).
PGL(2,8), x → (ax + b) / (cx + d), has 504 elements that agree pairwise in at most 2 places. With the
Frobenius map x → x² it grows to PΓL(2,8), 1,512 elements that agree in at most 3. Its cosets are each chosen
to be the farthest from those before. They give a minimum distance of 4 up to 16,632 permutations, and of 3 or
2 up to all 9!. So sets of 500, 1,000 and 2,000 have minima of 7, 6 and 4 (greedily 5, 5 and 4). 7 and 6 are
the best possible, because at most 9! / 6! = 504 permutations can differ in 7 places. Every prefix has the
best mean for its size.

For any other number of pieces the search is greedy, by the minimum distance and then by the mean. It covers
all permutations if there are few, else a seeded pool of random ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations as all_orders

import numpy as np

from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.kernels.jit import njit

_POOL = 2**17  # candidates of the greedy search if n! is more: 2,000 of 16 or 25 pieces take a second
_POINT_AT_INFINITY = 8  # of the projective line over GF(8), whose other points are 0 to 7


@dataclass(frozen=True, eq=False)
class PermutationSet:
    """A nested family of permutation sets.

    Attributes:
        permutations: int64 [max(counts), num_pieces], from 0. The first c rows are the set for a count c.
        counts: The sizes of the sets.
    """

    permutations: np.ndarray
    counts: tuple[int, ...]


def permutation_set(num_pieces: int, counts: Sequence[int]) -> PermutationSet:
    """Return nested sets of permutations, the same on every call and machine.

    Args:
        num_pieces: The number of pieces, 2 to 255.
        counts: The sizes of the sets.

    Raises:
        ValueError: If a count is below 2 or above num_pieces!.
    """
    if not 2 <= num_pieces <= 255:
        raise ValueError(
            f"{num_pieces} pieces given; allowed are 2 to 255, in a grid 2 to 15 cells per side: "
            "choose another number"
        )
    possible = math.factorial(num_pieces)
    if not counts or min(counts) < 2 or max(counts) > possible:
        shown = f"{possible:,}" if num_pieces <= 20 else f"{num_pieces}!"
        raise ValueError(
            f"counts {' '.join(map(str, counts)) or '(none)'} given for {num_pieces} pieces; "
            f"allowed are 2 to {shown}, the number of their orders: choose counts in that range"
        )
    make = (
        projective_permutations if num_pieces == 9 else lambda count: greedy_permutations(num_pieces, count)
    )
    return PermutationSet(make(max(counts)), tuple(counts))


def projective_permutations(count: int) -> np.ndarray:
    """Return int64 [count, 9], with count <= 9!: PGL(2,8), then PΓL(2,8), then its cosets."""
    assert 1 <= count <= math.factorial(9), count
    times = [[_times(a, b) for b in range(8)] for a in range(8)]
    inverse = [0] + [row.index(1) for row in times[1:]]
    elements = set()
    for a, b, c, d in np.ndindex(8, 8, 8, 8):
        if times[a][d] == times[b][c]:
            continue  # determinant 0
        image = []
        for x in range(9):
            top, bottom = (a, c) if x == _POINT_AT_INFINITY else (times[a][x] ^ b, times[c][x] ^ d)
            image.append(_POINT_AT_INFINITY if bottom == 0 else times[top][inverse[bottom]])
        elements.add(tuple(image))
    # The cosets g, g s, ..., g s^8 of a nine-cycle s are Latin squares, in which each piece stands once in
    # each place. In this order every prefix is balanced to within one, which gives it the best mean.
    cycle = np.array(next(g for g in sorted(elements) if _is_nine_cycle(g)))
    powers = [np.arange(9)]
    for _ in range(8):
        powers.append(cycle[powers[-1]])
    group, members = [], set()
    for g in sorted(elements):
        if g not in members:
            coset = [tuple(np.array(g)[power].tolist()) for power in powers]
            members.update(coset)
            group.extend(coset)
    frobenius = np.array([times[x][x] for x in range(8)] + [_POINT_AT_INFINITY])
    pgl = np.array(group)
    full_group = np.concatenate([pgl, pgl[:, frobenius], pgl[:, frobenius[frobenius]]])
    assert len(pgl) == 504 and len(full_group) == 1512
    cosets = [full_group]
    if count > len(full_group):
        representatives = _farthest_cosets(full_group, frobenius, -(-count // len(full_group)))
        cosets = [representative[full_group] for representative in representatives]
    return np.ascontiguousarray(np.concatenate(cosets)[:count], dtype=np.int64)


def _times(a: int, b: int) -> int:
    # GF(8) = GF(2)[t] / (t³ + t + 1); the bits of an element are its coefficients.
    product = 0
    for bit in range(3):
        if b >> bit & 1:
            product ^= a << bit
    for bit in (4, 3):
        if product >> bit & 1:
            product ^= 0b1011 << (bit - 3)
    return product


def _is_nine_cycle(g: Sequence[int]) -> bool:
    point, length = g[0], 1
    while point != 0:
        point, length = g[point], length + 1
    return length == 9


def _farthest_cosets(group: np.ndarray, frobenius: np.ndarray, num_cosets: int) -> list[np.ndarray]:
    # The group is sharply 3-transitive up to Frobenius, so each coset r·group has 3 members that fix 0, 1 and
    # infinity: r, r·frobenius and r·frobenius². The first of them represents it. There are 6! / 3 = 240
    # cosets.
    fixing = [np.array([0, 1, *order, _POINT_AT_INFINITY]) for order in all_orders(range(2, 8))]
    cosets = np.array(
        [r for r in fixing if r.tolist() <= min(r[frobenius].tolist(), r[frobenius[frobenius]].tolist())]
    )
    assert len(cosets) == 240
    chosen = [cosets[0]]
    distances = np.full(len(cosets), 9)
    while len(chosen) < num_cosets:
        # Multiplication from either side keeps distances, so the distance of two cosets r and q is the
        # smallest one between the identity and the members of r⁻¹q·group.
        between = np.argsort(chosen[-1])[cosets]
        agreements = np.zeros((len(cosets), len(group)), np.int64)
        for place in range(9):
            agreements += between[:, group[:, place]] == place
        distances = np.minimum(distances, 9 - agreements.max(1))
        chosen.append(cosets[int(distances.argmax())])
    return chosen


def greedy_permutations(num_pieces: int, count: int) -> np.ndarray:
    """Return permutations that are far apart, by greedy search.

    The first is the identity. Each next one is the candidate with the greatest minimum distance to those
    chosen. Ties go to the greatest mean distance, then to the lexicographic order. Candidates are all
    permutations if there are at most max(2**17, 8 * count, 9!). Otherwise they are max(2**17, 8 * count)
    random ones from a fixed Philox key, each the argsort of its words. The result is then good but not
    optimal.

    The result is int64 [count, num_pieces].
    """
    pool_size = max(_POOL, 8 * count)
    if math.factorial(num_pieces) <= max(pool_size, math.factorial(9)):
        pool = np.array(list(all_orders(range(num_pieces))), np.uint8)
    else:
        keys = Keys(seed=0, epoch=0, indices=np.arange(pool_size, dtype=np.int64))
        random_orders = np.argsort(words(keys, Slot.PERMUTATION, num_pieces), axis=1, kind="stable")
        pool = np.unique(np.concatenate([[np.arange(num_pieces)], random_orders]).astype(np.uint8), axis=0)
    assert count <= len(pool), (count, len(pool))
    return pool[_greedy(np.ascontiguousarray(pool.T), count)].astype(np.int64)


@njit(cache=True, nogil=True)
def _greedy(columns: np.ndarray, count: int) -> np.ndarray:
    num_pieces, num_candidates = columns.shape
    nearest = np.full(num_candidates, 255, np.uint8)
    total = np.zeros(num_candidates, np.int64)
    chosen = np.zeros(count, np.int64)
    block = 4096  # stays in the L1 cache during the loop over places
    distance = np.empty(block, np.uint8)
    for step in range(1, count):
        last = chosen[step - 1]
        best, best_nearest, best_total = -1, np.uint8(0), 0
        for start in range(0, num_candidates, block):
            size = min(block, num_candidates - start)
            distance[:] = 0
            for place in range(num_pieces):
                piece = columns[place, last]
                row = columns[place, start : start + size]
                for i in range(size):
                    distance[i] += np.uint8(row[i] != piece)
            for i in range(size):
                near = min(nearest[start + i], distance[i])
                nearest[start + i] = near
                sum_ = total[start + i] + distance[i]
                total[start + i] = sum_
                if near > best_nearest or (near == best_nearest and sum_ > best_total and near > 0):
                    best, best_nearest, best_total = start + i, near, sum_
        chosen[step] = best
    return chosen


@njit(cache=True, nogil=True)
def _minimum(rows: np.ndarray) -> int:
    least = rows.shape[1]
    for first in range(rows.shape[0]):
        for second in range(first):
            distance = 0
            for place in range(rows.shape[1]):
                distance += rows[first, place] != rows[second, place]
            least = min(least, distance)
    return least


def minimum_hamming(permutations: np.ndarray) -> int:
    """Return the smallest number of places in which two of the rows [N >= 2, n] differ, in N² n steps."""
    assert permutations.ndim == 2 and len(permutations) >= 2, permutations.shape
    return int(_minimum(np.ascontiguousarray(permutations, dtype=np.int64)))


def mean_hamming(permutations: np.ndarray) -> float:
    """Return the mean number of places in which two different rows of [N >= 2, n] differ."""
    assert permutations.ndim == 2 and len(permutations) >= 2, permutations.shape
    num = len(permutations)
    agreements = sum(int((np.unique(column, return_counts=True)[1] ** 2).sum()) for column in permutations.T)
    return (num * num * permutations.shape[1] - agreements) / (num * (num - 1))


def hamming_bound(num_permutations: int, num_pieces: int) -> float:
    """Return the largest possible mean of N >= 2 permutations of n: (n - 1) N / (N - 1), and at most n."""
    assert num_permutations >= 2, num_permutations
    return min(float(num_pieces), (num_pieces - 1) * num_permutations / (num_permutations - 1))
