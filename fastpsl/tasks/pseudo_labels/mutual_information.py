"""The mutual information of two views' clusters, which IIC maximises, over the global batch (sslpp.txt, section IV.B)."""

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from fastpsl.engine.distributed import place_among_ranks
from fastpsl.kernels.tf32 import no_tf32

# IIC's code (xu-ji/IIC): 2.2e-16. In half precision it would be 0, and the logarithm not finite.
EPS = sys.float_info.epsilon


def mutual_information_loss(first: Tensor, others: Tensor, valid: Tensor) -> Tensor:
    """-I(z, z') of equation 2, in nats, for each of S sub-heads: float32 [S], whatever the inputs are and under autocast too.

    first: distributions over C clusters, [B, S, C], of a view of this rank's samples. others: [K, B, S, C], of K more views: there
    are K * B pairs. valid: bool [B]; what is not valid may hold anything finite or not. B may be 0, and differ between ranks.

        P = mean over all ranks' pairs of z z'^T, then (P + P^T) / 2 over its sum, no cell and no marginal below EPS
        loss = -sum of P_cd (log P_cd - log P_c - log P_d),  -log C at best, 0 for one cluster or for views that share nothing

    The loss is that of all ranks' pairs, on every rank. The gradient of this rank's inputs is times the number of ranks, so that the
    mean over ranks that DDP takes is that of the loss. Where no sample is valid it is within C^2 * 1e-14 of 0.
    """
    with no_tf32(), torch.autocast(first.device.type, enabled=False):
        ignored = ~valid[:, None, None]
        z = first.float().masked_fill(ignored, 0.0)
        # P is linear in z', so the mean of the other views is all that it needs of them.
        z_other = others.float().mean(0).masked_fill(ignored, 0.0)
        joint: Tensor = _SumOverRanks.apply(torch.einsum("bsc,bsd->scd", z, z_other))
        joint = (joint + joint.transpose(1, 2)) / 2
        total = joint.sum((1, 2), keepdim=True)
        joint = joint / torch.where(total > 0, total, 1.0)
        rows, columns = joint.sum(2, keepdim=True), joint.sum(1, keepdim=True)
        logs = [part.clamp(min=EPS).log() for part in (joint, rows, columns)]
        return (joint.clamp(min=EPS) * (logs[1] + logs[2] - logs[0])).sum((1, 2))


class _SumOverRanks(torch.autograd.Function):
    """The sum of all ranks' tensors, which each rank then makes the same of: so its gradient is at hand everywhere, and none travels."""

    @staticmethod
    @override
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        _, ctx.world_size = place_among_ranks()
        total = tensor.clone(memory_format=torch.contiguous_format)
        if ctx.world_size > 1:
            dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    @override
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.world_size
