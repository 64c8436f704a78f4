"""The order of the samples in an epoch, a pure function of (seed, epoch) and never of ranks or history.

A position of an epoch is an index into an array, so a run resumes in mid-epoch without reading anything
before it. A step is a slice of positions, split between any number of ranks without changing its samples.
"""

from typing import Protocol

import numpy as np

from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.pipelines.loader.keyed_permutation import KeyedPermutation

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
    """The order of an evaluation, that of the data set.

    Args:
        num: The number of samples.
    """

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
    """Return a sorted order of an epoch: int64 [num_samples], a permutation of 0 to num_samples - 1.

    Samples are sorted (stably) by their `sort_keys`.
    """
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
    """Return the number of steps in an epoch.

    Training drops the last partial global batch, evaluation pads it.
    """
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
    """Distinguish the repeats of each index, so that draws keyed by the result differ between them.

    Args:
        order: Dataset indices, int64 [N]. An index may occur any number of times.

    Returns:
        int64 [N]: index + 2**40 * k for the k-th occurrence of an index (from 0). Padding stays padding.
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
