"""Shuffling BatchNorm (MoCo, section 3.3) in groups of a fixed size, the same for any number of ranks.

A key must not be normalised by the statistics that its query is normalised by, or the two can be matched by them alone. MoCo
shuffles the keys' images between GPUs, so that its groups are what a GPU holds. Here a group has its own size, the order is
drawn by (seed, epoch, step) and the groups are cut from the batch of all ranks: one GPU makes the keys that eight make.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastpsl.engine.distributed import gathered, place_among_ranks
from fastpsl.kernels.draws import Keys, Slot, words


def shuffled_order(seed: int, epoch: int, step: int, num: int) -> np.ndarray:
    """int64 [num], a permutation of 0..num-1: place p of the shuffled batch holds image order[p].

    Batch `step` of `epoch` is positions step * num to (step + 1) * num of that epoch; each has 64 random bits of its own.
    """
    positions = np.arange(step * num, (step + 1) * num, dtype=np.int64)
    high, low = words(Keys(seed, epoch, positions), Slot.TASK, 2).astype(np.uint64).T
    return np.argsort((high << np.uint64(32)) | low, kind="stable")


def encode_shuffled(
    encode: Callable[[Tensor, int], Tensor], images: Tensor, valid: Tensor, order: np.ndarray, group_size: int
) -> Tensor:
    """Keys of all ranks' images, float [world * B, width] in the order of the ranks; equal on every rank.

    images: this rank's [B, C, H, W]; valid: bool [world * B], of all ranks. order: `shuffled_order` of all world * B.
    encode: [n * group_size, C, H, W] and group_size to [n * group_size, width], a group being group_size images in a row; this rank
    encodes its share of the groups.
    An image that is not valid (padding, a sample that could not be decoded) is replaced by a valid one of the batch, so it
    is part of no group's statistics, and in its place stands a key that an image really has.
    ValueError where groups of `group_size` do not fill B.
    """
    size = len(images)
    if size % group_size:
        raise ValueError(
            f"--key-group {group_size} does not divide the {size} images of a rank's batch: "
            f"choose a divisor of {size}, or another --batch-size or --accumulate"
        )
    places = on_device(order, images.device)
    first = size * place_among_ranks()[0]
    sources = substitutes(valid)[places[first : first + size]]
    mine = gathered(images)[sources].contiguous(memory_format=torch.channels_last)
    shuffled = gathered(encode(mine, group_size))
    return torch.empty_like(shuffled).index_copy_(0, places, shuffled)


def substitutes(valid: Tensor) -> Tensor:
    """int64 [N] from bool [N]: each valid place itself; for the others valid places in turn (any, if none is valid)."""
    places = torch.arange(len(valid), device=valid.device)
    valid_first = torch.argsort(~valid, stable=True)
    return torch.where(valid, places, valid_first[places % valid.sum().clamp(min=1)])


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy on `device`; to a GPU from pinned memory, so that the host does not wait."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
