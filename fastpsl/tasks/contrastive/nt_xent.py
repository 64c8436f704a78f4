"""NT-Xent, SimCLR's contrastive loss, over the global batch, in blocks of rows."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from fastpsl.engine.distributed import gathered, place_among_ranks
from fastpsl.kernels.tf32 import no_tf32

# Similarities of a block: 64 MiB of float32. At most three such tensors live at once (224 MiB in all at 16,384 embeddings of 128).
BLOCK_ELEMENTS = 2**24


class NTXent(NamedTuple):
    """loss: scalar with a gradient. The others are of this rank's valid anchors alone, float32 scalars without one:
    the sum of their losses, how many have their positive nearest of all others, and how many they are.
    """

    loss: Tensor
    loss_sum: Tensor
    num_right: Tensor
    num_anchors: Tensor


def nt_xent(
    first: Tensor,
    second: Tensor,
    valid: Tensor,
    temperature: float,
    block_rows: int | None = None,
) -> NTXent:
    """SimCLR, equation 1 and Algorithm 1 (arXiv 2002.05709), float32 whatever the embeddings are and under autocast too.

    first, second: embeddings [B, D] of the two views of this rank's samples, of any length but 0; B alike on all ranks.
    valid: bool [B]; what is not valid is neither anchor nor negative. Each valid embedding of N valid samples of all
    ranks is an anchor: its positive is the sample's other view, its negatives are the 2N - 2 other embeddings of all ranks.

    The loss is this rank's sum over its anchors, times the number of ranks, over the number of all ranks' anchors: its mean
    over ranks is the global mean. Its gradient is that of the *sum* of all ranks' losses, as embeddings of this rank are
    negatives elsewhere; so the mean over ranks that DDP takes is the gradient of the global mean, also where ranks
    have different numbers of valid samples. 0 where no sample is valid.

    block_rows: anchors whose similarities [block_rows, 2N] are held at once, forward and backward; it changes no value
    beyond the order of float32 sums.
    """
    if temperature <= 0:
        raise ValueError(f"temperature {temperature}: it must be above 0")
    with no_tf32(), torch.autocast(first.device.type, enabled=False):
        # What is not valid may hold anything; 0 times what is not finite would be in every sum.
        views = torch.stack([first, second], 1).float().masked_fill(~valid[:, None, None], 0.0)
        views = F.normalize(views, dim=2)
        return NTXent(*_NTXent.apply(views, valid, temperature, block_rows))


class _NTXent(torch.autograd.Function):
    """Similarities are symmetric, s_ij = s_ji. So with the log-sums L of all rows at hand (2N numbers), a rank has the whole
    gradient of its embeddings from its own rows alone, and nothing of width D travels backward. With T the temperature:

        T * d(sum of all losses) / d z_i  =  sum_j (exp(s_ij - L_i) + exp(s_ij - L_j)) z_j  -  2 z_positive(i),  j != i
    """

    @staticmethod
    @override
    def forward(
        ctx: Any, views: Tensor, valid: Tensor, temperature: float, block_rows: int | None
    ) -> tuple[Tensor, ...]:
        rank, world_size = place_among_ranks()
        num_rows, width = 2 * len(views), views.shape[2]
        # One message: embeddings, and whether they count. A sample's two rows are neighbours: row r's positive is r ^ 1.
        message = gathered(torch.cat([views.flatten(1), valid.float()[:, None]], 1))
        columns = message[:, :-1].reshape(-1, width)
        counts = message[:, -1].repeat_interleave(2) > 0
        block_rows = block_rows or max(1, BLOCK_ELEMENTS // max(1, len(columns)))
        own = slice(rank * num_rows, (rank + 1) * num_rows)
        blocks = [slice(i, min(i + block_rows, own.stop)) for i in range(own.start, own.stop, block_rows)]
        log_sums, losses, right = (views.new_empty(num_rows) for _ in range(3))
        for block in blocks:
            similarities, positive = _similarities(columns, counts, block, temperature)
            to_positive = similarities.gather(1, positive)[:, 0]
            similarities.scatter_(1, positive, -torch.inf)
            here = slice(block.start - own.start, block.stop - own.start)
            # The log-sum less the positive, without taking the difference of two large numbers.
            losses[here] = F.softplus(similarities.logsumexp(1) - to_positive)
            log_sums[here] = to_positive + losses[here]
            right[here] = (to_positive > similarities.amax(1)).float()  # a tie is wrong: a collapse scores 0
        # A row that is no anchor gets an endless log-sum: exp(s - L) is 0 for it in both of the gradient's sums.
        log_sums.masked_fill_(~counts[own], torch.inf)
        loss_sum = losses.masked_fill_(~counts[own], 0).sum()
        num_right, num_anchors = (right * counts[own]).sum(), counts[own].sum().float()
        factor = world_size / counts.sum().clamp(min=1)
        # At its positive a row has the weight (p - 1) for itself and for the positive, and p is exp(-loss).
        at_positive = torch.expm1(-losses).view(-1, 2).sum(1).repeat_interleave(2)
        ctx.save_for_backward(columns, counts, gathered(log_sums), at_positive, factor)
        ctx.blocks, ctx.start, ctx.temperature = blocks, own.start, temperature
        ctx.mark_non_differentiable(loss_sum, num_right, num_anchors)
        return loss_sum * factor, loss_sum, num_right, num_anchors

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    @override
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        columns, counts, log_sums, at_positive, factor = ctx.saved_tensors
        parts = []
        with no_tf32(), torch.autocast(columns.device.type, enabled=False):
            for block in ctx.blocks:
                similarities, positive = _similarities(columns, counts, block, ctx.temperature)
                weights = (similarities - log_sums).exp_()
                weights += similarities.sub_(log_sums[block, None]).exp_()
                here = slice(block.start - ctx.start, block.stop - ctx.start)
                weights.scatter_(1, positive, at_positive[here, None])
                parts.append((weights @ columns) * counts[block, None])
        views = torch.cat(parts).view(-1, 2, columns.shape[1])
        return views * (gradient * factor / ctx.temperature), None, None, None


def _similarities(columns: Tensor, counts: Tensor, rows: slice, temperature: float) -> tuple[Tensor, Tensor]:
    """Cosines of `rows` with all columns over the temperature, -inf with oneself and with columns that do not count; and
    the column of each row's positive, int64 [rows, 1].
    """
    masked = torch.zeros_like(columns[:, 0]).masked_fill_(~counts, -torch.inf)
    similarities = torch.addmm(masked, columns[rows], columns.T, alpha=1 / temperature)
    itself = torch.arange(rows.start, rows.stop, device=columns.device)[:, None]
    return similarities.scatter_(1, itself, -torch.inf), itself ^ 1
