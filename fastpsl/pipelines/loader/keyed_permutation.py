"""A permutation that is computed and not stored, for orders of data sets too large for a table.

It is a generalised Feistel network (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002)
with Philox as the round function. The numbers 0 to a * b - 1 are pairs (left, right) with left < a and
right < b. In turn, one of the two is shifted by random words that the other keys, so every round can be
undone. A result of `num` or more is permuted again until it is below ("cycle walking"). With a and b near the
root of `num` that happens to one in a root of `num`.
"""

import math
from typing import final

import numpy as np

from fastpsl.kernels.draws import Keys, Slot, scaled, words

_ROUNDS = 8


@final
class KeyedPermutation:
    """A permutation of 0 to num - 1, a pure function of (seed, epoch, num) that is read like an array.

    Args:
        seed: The run's seed.
        epoch: The epoch, from 0.
        num: The number of samples, 1 to 2**62.
    """

    def __init__(self, seed: int, epoch: int, num: int) -> None:
        assert 1 <= num <= 2**62, num
        self._seed, self._epoch, self._num = seed, epoch, num
        self._num_left = math.isqrt(num - 1) + 1
        self._num_right = -(-num // self._num_left)

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, positions: "slice | np.ndarray") -> np.ndarray:
        """Return the values at positions: int64 of their number, at some hundred bytes of memory for each."""
        if isinstance(positions, slice):
            positions = np.arange(*positions.indices(self._num), dtype=np.int64)
        assert not len(positions) or 0 <= positions.min() <= positions.max() < self._num, positions
        values = self._rounds(positions)
        while len(outside := np.flatnonzero(values >= self._num)):
            values[outside] = self._rounds(values[outside])
        return values

    def _rounds(self, values: np.ndarray) -> np.ndarray:
        """Permute values of 0 to num_left * num_right - 1."""
        left, right = np.divmod(values, self._num_right)
        for number in range(_ROUNDS):
            if number % 2 == 0:
                left = self._shifted(left, right, self._num_left, number)
            else:
                right = self._shifted(right, left, self._num_right, number)
        return left * self._num_right + right

    def _shifted(self, values: np.ndarray, by: np.ndarray, modulus: int, number: int) -> np.ndarray:
        random_words = words(Keys(self._seed, self._epoch, by, number), Slot.KEYED_ORDER, 1)[:, 0]
        return (values + scaled(random_words, modulus)) % modulus
