"""An order in which every class stands equally often (uic.txt, section 4.2, "Class balance sampling").

The paper says no more than that. DeepCluster draws as many of each cluster with replacement; here a class's draws go round its
members, so that an image of a class that needs all of them is never left out by chance.
"""

import numpy as np

from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.kernels.empty_classes import by_class
from fastpsl.pipelines.loader.order import epoch_order, sort_keys


def balanced_order(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch of training: int64 [N], indices of `labels` (int [N], none below 0, N > 0), each 0 to N times.

    Each of the K' classes that are not empty stands there N // K' times; those that make up the rest of N, once more each, are
    drawn. A class of n that stands there q n + r times has each member q times, and r of them, drawn, once more. All of it is
    shuffled. A pure function of its arguments: drawn are the lowest sort keys, a sample's being the first two words of
    (seed, epoch, its index) in Slot.BALANCE, those of a class the next two of (seed, epoch, the class).
    """
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
