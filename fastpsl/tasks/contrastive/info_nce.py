"""Compute InfoNCE, MoCo's contrastive loss against a queue of keys (arXiv 1911.05722, equation 1)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class InfoNCE(NamedTuple):
    """The sums over this rank's valid queries.

    Attributes:
        loss_sum: The sum of the losses, a float32 scalar with a gradient.
        num_correct: Number of queries whose own key is nearer than all keys of the queue.
        losses: The losses of all queries, float32 [B], without a gradient.
    """

    loss_sum: Tensor
    num_correct: Tensor
    losses: Tensor


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, valid: Tensor, temperature: float) -> InfoNCE:
    """Compare queries with their own keys and with those of the queue, in float32, even under autocast.

    Queries and keys are [B, D], `valid` is bool [B], and the queue is float32 [K, D]. Queries may have any
    length. The keys and the queue have length 1.
    """
    # Under autocast, the products would be of half precision.
    with torch.autocast(queries.device.type, enabled=False):
        queries = F.normalize(queries.float())
        positive = (queries * keys).sum(1, keepdim=True)
        logits = torch.cat([positive, queries @ queue.T], 1) / temperature
        # Each query's own key is the logit 0.
        losses = F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long), reduction="none")
        weights = valid.float()  # not an index, which would wait for the device to count
        return InfoNCE((losses * weights).sum(), ((logits.argmax(1) == 0) * weights).sum(), losses.detach())


def enqueue(queue: Tensor, slot: Tensor, keys: Tensor, is_skipped: Tensor | None = None) -> None:
    """Replace the oldest keys, from `slot` on, which moves behind them.

    `slot` is an int64 scalar. A key that is not finite leaves the old one in its place. If `is_skipped`, a
    number on the device, is not 0, all stay.
    """
    places = (slot + torch.arange(len(keys), device=keys.device)) % len(queue)
    taken, num = keys.isfinite().all(1, keepdim=True), torch.full_like(slot, len(keys))
    if is_skipped is not None:
        # No branch, because the device alone knows it, and no copy of the queue that could be put back.
        is_made = is_skipped.reshape(()) == 0
        taken, num = taken & is_made, num * is_made
    # In place, as all that a captured step writes.
    queue.index_copy_(0, places, torch.where(taken, keys, queue[places]))
    slot.add_(num).remainder_(len(queue))
