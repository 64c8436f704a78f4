"""The order of the samples in an epoch, a pure function of (seed, epoch) and never of ranks or history.

A position of an epoch is an index into an array, so a run resumes in mid-epoch without reading anything
before it. A step is a slice of positions, split between any number of ranks without changing its samples.

The permutation is a generalised Feistel network (Black and Rogaway, "Ciphers with arbitrary finite
domains", CT-RSA 2002) with Philox as the round function. The numbers 0 to a * b - 1 are pairs (left, right)
with left < a and right < b. In turn, one of the two is shifted by random words that the other keys, so
every round can be undone.
"""

import math
from typing import Protocol, final

import numpy as np

from fastpsl.kernels.draws import Keys, Slot, scaled, words
from fastpsl.kernels.empty_classes import by_class

# Four would do if their functions were random (Luby and Rackoff, 1988). Eight take twice as long; the two
# were not compared. A run is resumed by this order, so the number stays.
_ROUNDS = 8


@final
class KeyedPermutation:
    """A permutation of 0 to num - 1, a pure function of (seed, epoch, num) that is read like an array."""

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
        # "Cycle walking". With left and right near the root of `num`, one value in a root of `num` needs it.
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


PADDING = -1
MAX_SORTED = 1 << 25  # samples; their order takes 268 MB on each rank, and 671 MB while it is sorted
_BLOCK = 1 << 16  # samples per call of `words`: bounds the temporary memory to 3 MB
_TIMES_SHIFT = 40  # bits of an index: a million million samples, each up to 2**23 times an epoch


class Order(Protocol):
    """The dataset indices at the positions of an epoch: an array, or what computes its slices."""

    def __len__(self) -> int: ...
    def __getitem__(self, positions: slice, /) -> np.ndarray:
        """Return int64 of the slice's length."""
        ...


class InOrder:
    """The order of an evaluation, that of the data set."""

    def __init__(self, num: int) -> None:
        self._num = num

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, positions: slice) -> np.ndarray:
        return np.arange(*positions.indices(self._num), dtype=np.int64)


def training_order(seed: int, epoch: int, num_samples: int) -> Order:
    """Return the random order of a training epoch: sorted, or computed for more than MAX_SORTED samples.

    The choice depends on the data set alone, so that a run may be resumed anywhere.
    """
    if num_samples > MAX_SORTED:
        return KeyedPermutation(seed, epoch, num_samples)
    return epoch_order(seed, epoch, num_samples)


def epoch_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """Return the permutation of 0 to num_samples - 1, int64, that sorts `sort_keys` (stably)."""
    order = np.argsort(sort_keys(seed, epoch, num_samples), kind="stable")
    return order.astype(np.int64, copy=False)


def sort_keys(seed: int, epoch: int, num_samples: int, slot: Slot = Slot.ORDER) -> np.ndarray:
    """Return 64 random bits per sample (`keys_of`), uint64 [num_samples]."""
    keys = np.empty(num_samples, np.uint64)
    for start in range(0, num_samples, _BLOCK):
        indices = np.arange(start, min(start + _BLOCK, num_samples), dtype=np.int64)
        keys[start : start + len(indices)] = keys_of(seed, epoch, indices, slot)
    return keys


def keys_of(seed: int, epoch: int, indices: np.ndarray, slot: Slot = Slot.ORDER) -> np.ndarray:
    """Return 64 random bits for each index, the slot's first two words for (seed, epoch, index), uint64."""
    high, low = words(Keys(seed, epoch, indices), slot, 2).astype(np.uint64).T
    return (high << np.uint64(32)) | low


def num_steps(num_samples: int, global_batch: int, train: bool) -> int:
    """Return the steps of an epoch. Training drops the last partial global batch, evaluation pads it."""
    return num_samples // global_batch if train else -(-num_samples // global_batch)


def step_indices(order: Order, step: int, batch_size: int, rank: int, world: int) -> np.ndarray:
    """Return the dataset indices of one rank at one step: int64 [batch_size].

    With a global batch of G = world * batch_size, step s covers the positions from s * G to (s + 1) * G. Rank
    r takes the r-th part of them. Positions past the end are PADDING (-1).
    """
    start = (step * world + rank) * batch_size
    part = order[start : start + batch_size]
    if len(part) == batch_size:
        return part
    return np.concatenate([part, np.full(batch_size - len(part), PADDING, np.int64)])


def numbered(order: np.ndarray) -> np.ndarray:
    """Distinguish the repeats of each index in int64 [N], so that draws keyed by the result differ.

    The k-th occurrence of an index (from 0) becomes index + 2**40 * k. Padding stays padding.
    """
    by_index = np.argsort(order, kind="stable")
    indices = order[by_index]
    is_first = np.ones(len(order), bool)
    is_first[1:] = indices[1:] != indices[:-1]
    places = np.arange(len(order))
    times = np.empty(len(order), np.int64)
    times[by_index] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    return np.where(order == PADDING, PADDING, order + (times << _TIMES_SHIFT))


def index_of(number: np.ndarray) -> np.ndarray:
    """Return the dataset indices of the values that `numbered` returned; padding stays padding."""
    return np.where(number == PADDING, PADDING, number & ((1 << _TIMES_SHIFT) - 1))


def balanced_order(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return the class-balanced order of an epoch, int64 [N], for labels int [N], of which none is negative.

    Each of the K non-empty classes gets N // K draws, and N % K randomly chosen classes get one more. A class
    of n members with q * n + r draws contributes each member q times, and r randomly chosen members once
    more. The whole is shuffled. Each random choice takes the lowest sort keys in Slot.BALANCE: a sample's key
    is the first two words for (seed, epoch, index), a class's the next two for (seed, epoch, class).
    """
    # UIC gives no details, and DeepCluster draws with replacement. Here a class's draws cycle through its
    # members, so that chance leaves no image out while a class has enough draws for all of them.
    num_samples = len(labels)
    assert num_samples and labels.min() >= 0, "labels are missing"
    sizes = np.bincount(labels)
    classes = np.flatnonzero(sizes)
    sizes = sizes[classes]
    members = by_class(labels, sort_keys(seed, epoch, num_samples, Slot.BALANCE))
    draws, rest = divmod(num_samples, len(classes))
    _, _, high, low = words(Keys(seed, epoch, classes), Slot.BALANCE, 4).T
    class_draws = np.full(len(classes), draws)
    class_draws[np.lexsort((low, high))[:rest]] += 1
    rounds, extra = np.divmod(class_draws, sizes)
    place_in_class = np.arange(num_samples) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    times = np.repeat(rounds, sizes) + (place_in_class < np.repeat(extra, sizes))
    drawn = np.repeat(members, times).astype(np.int64, copy=False)
    return drawn[epoch_order(seed, epoch, num_samples)]
