"""No class stays empty (uic.txt, section 4.2, "Avoid empty classes"): the biggest class is split in two halves instead.

The paper does not say which members go. Here that is drawn, for each of them by itself: by their order in the set, a split would
hand on the true classes, as folders of images are sorted by class.
"""

import heapq

import numpy as np

from fastpsl.kernels.draws import Keys, Slot, words


def split_empty(labels: np.ndarray, num_classes: int, seed: int, epoch: int) -> tuple[np.ndarray, int]:
    """(labels without empty classes int32 [N], number of splits) from labels int [N] in [0, num_classes).

    Until none is empty, the biggest class (of equals the lowest) is halved and the lowest empty one gets what goes, an odd
    member less. Of a class the members with the highest sort keys go: the words of (seed, epoch, index) in Slot.SPLIT.
    A pure function of its arguments. ValueError where there are fewer images than classes.
    """
    if len(labels) < num_classes:
        raise ValueError(
            f"{len(labels):,} images cannot fill {num_classes:,} classes; give --num-classes {len(labels)} or less, or more images"
        )
    assert labels.min() >= 0 and labels.max() < num_classes, (labels.min(), labels.max(), num_classes)
    sizes = np.bincount(labels, minlength=num_classes)
    found = labels.astype(np.int32)
    empty = np.flatnonzero(sizes == 0).tolist()
    # A part is (-its size, its class now, its class before, its first place among that one's members by key). Members of a part
    # stand next to each other by their keys, so a part's halves do too.
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
    found[members] = np.repeat([number for _, number, _, _ in parts], [-size for size, *_ in parts])
    return found, len(empty)


def by_class(labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """int64 [N]: places in `labels` (int [N], none below 0), class after class, within a class by keys (uint64 [N]), then by place."""
    # Of 16 bits numpy sorts by radix: 1.3 million in 0.13 s and not 0.26.
    return np.lexsort((keys, labels.astype(np.min_scalar_type(labels.max(initial=0)))))
