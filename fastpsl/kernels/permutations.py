"""Permutation sets for jigsaw puzzles: far apart in Hamming distance, and nested.

What makes a puzzle hard is the smallest distance in its set; the mean is close to n - 1 for any set (two
random permutations of n agree in one place on average) and at most (n - 1) N / (N - 1) for N permutations.

Nine pieces are the points of the projective line over GF(8). PGL(2,8), x → (ax + b) / (cx + d), has 504
elements that agree pairwise in at most 2 places; with the Frobenius map x → x² it grows to PΓL(2,8), 1,512
that agree in at most 3; its cosets, each chosen to be the farthest from those before, give a minimum distance
of 4 up to 16,632 permutations and 3 or 2 up to all 9!. So sets of 500, 1,000 and 2,000 have minima of 7, 6
and 4 (greedily 5, 5 and 4); 7 and 6 are the best possible, since at most 9! / 6! = 504 can differ in 7
places. Every prefix has the best mean that its size allows.

Any other number of pieces: greedy by the minimum distance, then by the mean, over all permutations where
there are few, else over a seeded pool of random ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations as all_orders

import numba
import numpy as np

from fastpsl.kernels.draws import Keys, Slot, words

_POOL = 2**17  # candidates of the greedy search where n! is more: 2,000 of 16 or 25 pieces take a second
_POINT_AT_INFINITY = 8


@dataclass(frozen=True, eq=False)
class PermutationSet:
    """permutations: int64 [max(counts), num_pieces], 0-based; the first c rows are the set of c in counts."""

    permutations: np.ndarray
    counts: tuple[int, ...]


def permutation_set(num_pieces: int, counts: Sequence[int]) -> PermutationSet:
    """Nested sets of `counts` permutations of `num_pieces` (2 to 255), the same on every call and machine.

    ValueError for a count below 2 or above num_pieces!.
    """
    if not 2 <= num_pieces <= 255:
        raise ValueError(f"{num_pieces} pieces given; allowed are 2 to 255: choose another number")
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
    """int64 [count, 9], count <= 9!: PGL(2,8), then PΓL(2,8), then its cosets, as the module says."""
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
    # each place. In this order every prefix is balanced to one, which is what makes its mean the best.
    cycle = np.array(next(g for g in sorted(elements) if _is_nine_cycle(g)))
    powers = [np.arange(9)]
    for _ in range(8):
        powers.append(cycle[powers[-1]])
    group, seen = [], set()
    for g in sorted(elements):
        if g not in seen:
            coset = [tuple(np.array(g)[power].tolist()) for power in powers]
            seen.update(coset)
            group.extend(coset)
    frobenius = np.array([times[x][x] for x in range(8)] + [_POINT_AT_INFINITY])
    pgl = np.array(group)
    whole = np.concatenate([pgl, pgl[:, frobenius], pgl[:, frobenius[frobenius]]])
    assert len(pgl) == 504 and len(whole) == 1512
    cosets = [whole]
    if count > len(whole):
        representatives = _farthest_cosets(whole, frobenius, -(-count // len(whole)))
        cosets = [representative[whole] for representative in representatives]
    return np.ascontiguousarray(np.concatenate(cosets)[:count], dtype=np.int64)


def _times(a: int, b: int) -> int:
    # GF(8) = GF(2)[t] / (t³ + t + 1), an element's bits being its coefficients
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
    # The group is sharply 3-transitive but for Frobenius, so each coset r·group has 3 members that fix 0, 1
    # and infinity: r, r·frobenius, r·frobenius². The first of them stands for it; there are 6! / 3 = 240.
    fixing = [np.array([0, 1, *order, _POINT_AT_INFINITY]) for order in all_orders(range(2, 8))]
    cosets = np.array(
        [r for r in fixing if r.tolist() <= min(r[frobenius].tolist(), r[frobenius[frobenius]].tolist())]
    )
    assert len(cosets) == 240
    chosen = [cosets[0]]
    distances = np.full(len(cosets), 9)
    while len(chosen) < num_cosets:
        # Distances do not change under multiplication from either side, so that of two cosets r and q is the
        # smallest of the identity to the members of r⁻¹q·group.
        between = np.argsort(chosen[-1])[cosets]
        agreements = np.zeros((len(cosets), len(group)), np.int64)
        for place in range(9):
            agreements += between[:, group[:, place]] == place
        distances = np.minimum(distances, 9 - agreements.max(1))
        chosen.append(cosets[int(distances.argmax())])
    return chosen


def greedy_permutations(num_pieces: int, count: int) -> np.ndarray:
    """int64 [count, num_pieces]: the identity, then always the candidate whose smallest distance to those
    chosen is the greatest; of equals the one with the greatest mean distance, of equals the first in
    lexicographic order.

    Candidates are all orders where there are at most max(2**17, 8 * count, 9!), else that many random ones
    from a fixed Philox key (each the argsort of its words), so that what it finds is good and not the best.
    """
    pool_size = max(_POOL, 8 * count)
    if math.factorial(num_pieces) <= max(pool_size, math.factorial(9)):
        pool = np.array(list(all_orders(range(num_pieces))), np.uint8)
    else:
        keys = Keys(seed=0, epoch=0, indices=np.arange(pool_size, dtype=np.int64))
        drawn = np.argsort(words(keys, Slot.PERMUTATION, num_pieces), axis=1, kind="stable")
        pool = np.unique(np.concatenate([[np.arange(num_pieces)], drawn]).astype(np.uint8), axis=0)
    assert count <= len(pool), (count, len(pool))
    return pool[_greedy(np.ascontiguousarray(pool.T), count)].astype(np.int64)


@numba.njit(cache=True, nogil=True)
def _greedy(columns: np.ndarray, count: int) -> np.ndarray:
    num_pieces, num_candidates = columns.shape
    nearest = np.full(num_candidates, 255, np.uint8)
    total = np.zeros(num_candidates, np.int64)
    chosen = np.zeros(count, np.int64)
    block = 4096  # stays in the first cache while the places are gone through
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


@numba.njit(cache=True, nogil=True)
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
    """The smallest number of places in which two of the rows [N >= 2, n] differ; N² n steps."""
    assert permutations.ndim == 2 and len(permutations) >= 2, permutations.shape
    return int(_minimum(np.ascontiguousarray(permutations, dtype=np.int64)))


def mean_hamming(permutations: np.ndarray) -> float:
    """The mean number of places in which two different rows of [N >= 2, n] differ."""
    assert permutations.ndim == 2 and len(permutations) >= 2, permutations.shape
    num = len(permutations)
    agreements = sum(int((np.unique(column, return_counts=True)[1] ** 2).sum()) for column in permutations.T)
    return (num * num * permutations.shape[1] - agreements) / (num * (num - 1))


def hamming_bound(num_permutations: int, num_pieces: int) -> float:
    """The greatest mean that N >= 2 permutations of n can have: (n - 1) N / (N - 1), and at most n."""
    assert num_permutations >= 2, num_permutations
    return min(float(num_pieces), (num_pieces - 1) * num_permutations / (num_permutations - 1))
