"""Empty classes, filled by splitting the biggest class in two (UIC, section 4.2, "Avoid empty classes").

The paper does not say which members move. Here that is random for each member. A split by the order in the
data set would pass on the true classes, because folders of images are sorted by class.
"""

import heapq

import numpy as np

from fastpsl.kernels.draws import Keys, Slot, words


def split_empty(labels: np.ndarray, num_classes: int, seed: int, epoch: int) -> tuple[np.ndarray, int]:
    """Split the biggest classes until none is empty.

    Each split halves the biggest class, the lowest one among equals, and gives one half to the lowest empty
    class. Of an odd number the moved half is the smaller. The members with the highest sort keys move, which
    are the words of (seed, epoch, index) in Slot.SPLIT. The result depends on the arguments alone.

    `labels` is int [N] in [0, num_classes). Returns labels without empty classes, int32 [N], and the number
    of splits. Raises ValueError if there are fewer images than classes.
    """
    if len(labels) < num_classes:
        raise ValueError(
            f"{len(labels):,} images cannot fill {num_classes:,} classes; "
            f"give --num-clusters {len(labels)} or less, or more images"
        )
    assert labels.min() >= 0 and labels.max() < num_classes, (labels.min(), labels.max(), num_classes)
    sizes = np.bincount(labels, minlength=num_classes)
    new_labels = labels.astype(np.int32)
    empty = np.flatnonzero(sizes == 0).tolist()
    # A part is a tuple: minus its size, its class, its class before the splits, and the index of its first
    # member among the members of that class, sorted by key. The members of a part are consecutive in this
    # order, so the halves of a part are as well.
    parts = [(-size, number, number, 0) for number, size in enumerate(sizes.tolist()) if size]
    heapq.heapify(parts)
    for number in empty:
        size, biggest, before, first = parts[0]
        goes = -size // 2
        stays = -size - goes
        heapq.heapreplace(parts, (-stays, biggest, before, first))
        heapq.heappush(parts, (-goes, number, before, first + stays))
    split = {before for _, number, before, _ in parts if number != before}
    parts = sorted((part for part in parts if part[2] in split), key=lambda part: part[2:])
    is_split = np.zeros(num_classes, bool)
    is_split[list(split)] = True
    members = np.flatnonzero(is_split[labels])
    high, low = words(Keys(seed, epoch, members), Slot.SPLIT, 2).astype(np.uint64).T
    members = members[by_class(labels[members], (high << np.uint64(32)) | low)]
    new_labels[members] = np.repeat([number for _, number, _, _ in parts], [-size for size, *_ in parts])
    return new_labels, len(empty)


def by_class(labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return int64 [N]: the indices of `labels`, sorted by class, then by key, then by index.

    `labels` is int [N], at least 0, and `keys` uint64 [N].
    """
    # numpy sorts integers of 16 bits by radix: 1.3 million in 0.13 s instead of 0.26 s.
    return np.lexsort((keys, labels.astype(np.min_scalar_type(labels.max(initial=0)))))
