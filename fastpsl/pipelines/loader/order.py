"""Which sample stands at which position of an epoch: a pure function of (seed, epoch), never of ranks or history.

Position p of an epoch is an array look-up, so a run resumes in mid-epoch without reading what came before. A step is
a slice of positions, split between the ranks: the samples of a step are the same set for any number of ranks.
"""

import numpy as np

from fastpsl.kernels.draws import Keys, Slot, words

PADDING = -1
_BLOCK = 1 << 20  # samples whose random words are made at once
_TIMES_SHIFT = 40  # bits of an index: a million million samples, each up to 2**23 times an epoch


def epoch_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """The order of an epoch of training: int64 [num_samples], a permutation of 0..num_samples-1.

    Samples are sorted (stably) by their `sort_keys`.
    """
    order = np.argsort(sort_keys(seed, epoch, num_samples), kind="stable")
    return order.astype(np.int64, copy=False)


def sort_keys(seed: int, epoch: int, num_samples: int, slot: Slot = Slot.ORDER) -> np.ndarray:
    """uint64 [num_samples]: 64 random bits of each sample's own, keyed by (seed, epoch, index): the slot's first two words."""
    keys = np.empty(num_samples, np.uint64)
    for start in range(0, num_samples, _BLOCK):
        indices = np.arange(start, min(start + _BLOCK, num_samples), dtype=np.int64)
        high, low = words(Keys(seed, epoch, indices), slot, 2).astype(np.uint64).T
        keys[start : start + len(indices)] = (high << np.uint64(32)) | low
    return keys


def num_steps(num_samples: int, global_batch: int, train: bool) -> int:
    """Steps of an epoch: training drops the last partial global batch, evaluation pads it."""
    return num_samples // global_batch if train else -(-num_samples // global_batch)


def step_indices(order: np.ndarray, step: int, batch_size: int, rank: int, world: int) -> np.ndarray:
    """Dataset indices of one rank at one step: int64 [batch_size].

    Step s of a global batch G = world * batch_size is positions s*G to (s+1)*G; rank r takes the r-th part of it.
    Positions past the end are PADDING (-1).
    """
    start = (step * world + rank) * batch_size
    part = order[start : start + batch_size]
    if len(part) == batch_size:
        return part
    return np.concatenate([part, np.full(batch_size - len(part), PADDING, np.int64)])


def numbered(order: np.ndarray) -> np.ndarray:
    """int64, like `order`: index + 2**40 k where an index stands for the k-th time (from 0); padding as it is.

    As keys of draws: an image that stands several times in an epoch is seen in as many ways.
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
    """The dataset indices of `numbered` ones; padding stays padding."""
    return np.where(number == PADDING, PADDING, number & ((1 << _TIMES_SHIFT) - 1))
