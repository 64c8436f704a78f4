"""Shuffle the images of keys for BatchNorm (MoCo, section 3.3), the same for any number of ranks.

Query and key must not share batch statistics, because the network could match them by these alone. MoCo
shuffles the keys' images between GPUs, so a group is a GPU's share. Here a group has a fixed size, and the
order is a function of (seed, epoch, step). The groups are cut from the batch of all ranks. One GPU therefore
computes the same keys as eight.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastpsl.engine.distributed import gathered, place_among_ranks
from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.pipelines.decoders.memory import to_device


def shuffled_order(seed: int, epoch: int, step: int, num: int) -> np.ndarray:
    """Return a permutation of 0 … num - 1, int64 [num]; place p of the shuffled batch has image order[p].

    Batch `step` of `epoch` has the positions step * num to (step + 1) * num of that epoch, and each position
    has its own 64 random bits.
    """
    positions = np.arange(step * num, (step + 1) * num, dtype=np.int64)
    high, low = words(Keys(seed, epoch, positions), Slot.TASK, 2).astype(np.uint64).T
    return np.argsort((high << np.uint64(32)) | low, kind="stable")


def encode_shuffled(
    encode: Callable[[Tensor, int], Tensor], images: Tensor, valid: Tensor, order: Tensor, group_size: int,
    host_order: np.ndarray | None = None,
) -> Tensor:  # fmt: skip
    """Encode all ranks' images in shuffled groups, each rank its share of the groups.

    An invalid image (padding, or one that could not be decoded) is replaced by a valid one of its group. So
    it is in no group's statistics, and its row holds the key of a real image, unless its group has none. A
    rank receives as many images as it has, whatever the number of ranks.

    Args:
        encode: A function from images [n * group_size, C, H, W] and group_size to keys [n * group_size,
            width]; group_size images in a row are a group.
        images: This rank's images [B, C, H, W].
        valid: bool [world * B], of all ranks.
        order: `shuffled_order` of all world * B images, on the images' device.
        group_size: Images per group.
        host_order: The same as `order`; several ranks need it, because they exchange numbers that depend on
            it.

    Returns:
        The keys, float [world * B, width], in the order of the ranks and equal on every rank.

    Raises:
        ValueError: `group_size` does not divide B.
    """
    size = len(images)
    if size % group_size:
        raise ValueError(
            f"--key-group {group_size} does not divide the {size} images of a rank's batch: "
            f"choose a divisor of {size}, or another --batch-size or --accumulate"
        )
    rank, world = place_among_ranks()
    places = order[rank * size : (rank + 1) * size]
    if world == 1:
        share = images[places]
    else:
        assert host_order is not None
        share = redistributed(images, host_order)
    groups = valid[places].view(-1, group_size)
    starts = torch.arange(0, size, group_size, device=images.device)[:, None]
    share = share[(starts + substitutes(groups)).flatten()].contiguous(memory_format=torch.channels_last)
    shuffled = gathered(encode(share, group_size))
    return torch.empty_like(shuffled).index_copy_(0, order, shuffled)


def redistributed(rows: Tensor, order: np.ndarray) -> Tensor:
    """Return this rank's part of the rows of all ranks in another order, without gradients.

    Args:
        rows: This rank's rows [B, ...], the part of its rank among world * B.
        order: A permutation of 0 … world * B - 1, equal on every rank; place p gets row order[p].

    Returns:
        The rows [B, ...] of the places from rank * B on.
    """
    size, (rank, world) = len(rows), place_among_ranks()
    owners = order // size
    places = np.flatnonzero(owners == rank)  # of this rank's rows; ascending, so by the rank that gets them
    sent = rows.detach()[on_device(order[places] - rank * size, rows.device)].contiguous()
    if world == 1:
        return sent
    senders = owners[rank * size : (rank + 1) * size]
    num_sent, num_received = (np.bincount(ranks, minlength=world) for ranks in (places // size, senders))
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, num_received.tolist(), num_sent.tolist())
    by_sender = on_device(np.argsort(senders, kind="stable"), rows.device)
    return torch.empty_like(received).index_copy_(0, by_sender, received)


def substitutes(valid: Tensor) -> Tensor:
    """Map the valid places of each group to themselves and the others to its valid places in turn.

    If no place of a group is valid, all are mapped to the first.

    Args:
        valid: bool [groups, n].

    Returns:
        int64 [groups, n] in [0, n).
    """
    places = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
    valid_first = torch.argsort(~valid, dim=1, stable=True)
    return torch.where(valid, places, valid_first.gather(1, places % valid.sum(1, keepdim=True).clamp(min=1)))


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to `device`; to a GPU from pinned memory, so that the host does not wait."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else to_device(tensor, device)
