"""Compute NT-Xent, SimCLR's contrastive loss over the global batch, in blocks of rows."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from fastpsl.engine.distributed import gathered, place_among_ranks
from fastpsl.kernels.tf32 import no_tf32

# A block's similarities take 64 MiB of float32. At most three such tensors live at once (224 MiB in all for
# 16,384 embeddings of width 128).
BLOCK_ELEMENTS = 2**24


class NTXent(NamedTuple):
    """The loss of NT-Xent and its metrics, which are scalars of this rank's valid anchors.

    Attributes:
        loss: The loss, a float32 scalar with a gradient.
        loss_sum: The sum of the anchors' losses, without a gradient.
        num_correct: Number of anchors whose positive is nearer than all other embeddings.
        num_anchors: Number of anchors.
        losses: The losses of both anchors of each sample, float32 [B, 2], without a gradient.
    """

    loss: Tensor
    loss_sum: Tensor
    num_correct: Tensor
    num_anchors: Tensor
    losses: Tensor


def nt_xent(
    first: Tensor, second: Tensor, valid: Tensor, temperature: float, block_rows: int | None = None
) -> NTXent:
    """Compute NT-Xent (SimCLR, equation 1 and Algorithm 1, arXiv 2002.05709) in float32, even under autocast.

    The embeddings of the two views are [B, D], of any length but 0, and `valid` is bool [B]. B is the same on
    all ranks. Only [block_rows, 2N] similarities are held at once, which changes the order of float32 sums.

    Each valid embedding of the N valid samples of all ranks is an anchor. Its positive is the sample's other
    view; its negatives are the 2N - 2 other embeddings. Invalid embeddings are neither anchors nor negatives.

    The loss is this rank's sum over its anchors, times the number of ranks, divided by the number of all
    ranks' anchors. So its mean over ranks is the global mean. Its gradient is that of the *sum* of all ranks'
    losses, because embeddings of this rank are negatives elsewhere. The mean over ranks that DDP takes is
    therefore the gradient of the global mean, even if ranks have different numbers of valid samples. Without
    a valid sample the loss is 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: it must be above 0")
    with no_tf32(), torch.autocast(first.device.type, enabled=False):
        # Invalid embeddings may be infinite or NaN, and 0 times that would spread to every sum.
        views = torch.stack([first, second], 1).float().masked_fill(~valid[:, None, None], 0.0)
        views = F.normalize(views, dim=2)
        return NTXent(*_NTXent.apply(views, valid, temperature, block_rows))


class _NTXent(torch.autograd.Function):
    """An autograd function that computes a rank's whole gradient from its own rows.

    Similarities are symmetric, s_ij = s_ji. With the log-sums L of all rows at hand (2N numbers), no tensor
    of width D travels backward. With the temperature T and j ≠ i:

        T * d(sum of all losses) / d z_i  =  sum_j (exp(s_ij - L_i) + exp(s_ij - L_j)) z_j  -  2 z_positive(i)
    """

    @staticmethod
    @override
    def forward(
        ctx: Any, views: Tensor, valid: Tensor, temperature: float, block_rows: int | None
    ) -> tuple[Tensor, ...]:
        rank, world_size = place_among_ranks()
        num_rows, width = 2 * len(views), views.shape[2]
        # One message has the embeddings and whether they count. A sample's two rows are neighbours, so the
        # positive of row r is r ^ 1.
        message = gathered(torch.cat([views.flatten(1), valid.float()[:, None]], 1))
        columns = message[:, :-1].reshape(-1, width)
        counts = message[:, -1].repeat_interleave(2) > 0
        block_rows = block_rows or max(1, BLOCK_ELEMENTS // max(1, len(columns)))
        own_rows = slice(rank * num_rows, (rank + 1) * num_rows)
        blocks = [
            slice(i, min(i + block_rows, own_rows.stop))
            for i in range(own_rows.start, own_rows.stop, block_rows)
        ]
        log_sums, losses, right = (views.new_empty(num_rows) for _ in range(3))
        for block in blocks:
            similarities, positive = _similarities(columns, counts, block, temperature)
            to_positive = similarities.gather(1, positive)[:, 0]
            similarities.scatter_(1, positive, -torch.inf)
            local = slice(block.start - own_rows.start, block.stop - own_rows.start)
            # The log-sum minus the positive, without a difference of two large numbers.
            losses[local] = F.softplus(similarities.logsumexp(1) - to_positive)
            log_sums[local] = to_positive + losses[local]
            right[local] = (to_positive > similarities.amax(1)).float()  # a tie is wrong: a collapse scores 0
        # A row that is no anchor gets an infinite log-sum, so that exp(s - L) is 0 in both sums of the
        # gradient.
        log_sums.masked_fill_(~counts[own_rows], torch.inf)
        loss_sum = losses.masked_fill_(~counts[own_rows], 0).sum()
        num_correct, num_anchors = (right * counts[own_rows]).sum(), counts[own_rows].sum().float()
        factor = world_size / counts.sum().clamp(min=1)
        # The weight at a row's positive is (p - 1) for the row and for the positive, with p = exp(-loss).
        at_positive = torch.expm1(-losses).view(-1, 2).sum(1).repeat_interleave(2)
        # Not the similarities, which backward computes again block by block: they are as many as pairs.
        ctx.save_for_backward(columns, counts, gathered(log_sums), at_positive, factor)
        ctx.blocks, ctx.start, ctx.temperature = blocks, own_rows.start, temperature
        of_samples = losses.view(-1, 2)
        ctx.mark_non_differentiable(loss_sum, num_correct, num_anchors, of_samples)
        return loss_sum * factor, loss_sum, num_correct, num_anchors, of_samples

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    @override
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        columns, counts, log_sums, at_positive, factor = ctx.saved_tensors
        parts = []
        # Again, because backward runs outside of the contexts of forward.
        with no_tf32(), torch.autocast(columns.device.type, enabled=False):
            for block in ctx.blocks:
                similarities, positive = _similarities(columns, counts, block, ctx.temperature)
                # In place where it can be, because each of these tensors is as large as a block may be.
                weights = (similarities - log_sums).exp_()
                weights += similarities.sub_(log_sums[block, None]).exp_()
                local = slice(block.start - ctx.start, block.stop - ctx.start)
                weights.scatter_(1, positive, at_positive[local, None])
                parts.append((weights @ columns) * counts[block, None])
        views = torch.cat(parts or [columns[:0]]).view(-1, 2, columns.shape[1])
        return views * (gradient * factor / ctx.temperature), None, None, None


def _similarities(columns: Tensor, counts: Tensor, rows: slice, temperature: float) -> tuple[Tensor, Tensor]:
    """Return cosines of `rows` with all columns over the temperature, and each row's positive.

    Cosines are -inf with the row itself and with columns that do not count. Positives are int64 [rows, 1].
    """
    masked = torch.zeros_like(columns[:, 0]).masked_fill_(~counts, -torch.inf)
    similarities = torch.addmm(masked, columns[rows], columns.T, alpha=1 / temperature)
    itself = torch.arange(rows.start, rows.stop, device=columns.device)[:, None]
    return similarities.scatter_(1, itself, -torch.inf), itself ^ 1
