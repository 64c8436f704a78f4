"""An order in which every class occurs equally often (UIC, section 4.2, "Class balance sampling").

The paper gives no details. DeepCluster draws equally many samples of each cluster with replacement. Here a
class's draws cycle through its members, so that chance leaves no image out while a class has enough draws for
all of them.
"""

import numpy as np

from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.kernels.empty_classes import by_class
from fastpsl.pipelines.loader.order import epoch_order, sort_keys


def balanced_order(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return the class-balanced order of a training epoch, a pure function of its arguments.

    Each of the K non-empty classes gets N // K draws, and N % K randomly chosen classes get one more. A class
    of n members with q * n + r draws contributes each member q times, and r randomly chosen members once
    more. The whole is shuffled. Each random choice takes the lowest sort keys in Slot.BALANCE: a sample's key
    is the first two words for (seed, epoch, index), a class's the next two for (seed, epoch, class).

    Args:
        labels: The class of each sample, int [N], N > 0, none negative.
        seed: The run's seed.
        epoch: The epoch, from 0.

    Returns:
        int64 [N]: indices into `labels`, each 0 to N times.
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
