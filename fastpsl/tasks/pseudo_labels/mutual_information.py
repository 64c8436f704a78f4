"""Compute the mutual information of two views' clusters over the global batch (SSL++, section IV.B)."""

import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from fastpsl.engine.distributed import place_among_ranks
from fastpsl.kernels.tf32 import no_tf32

# The value of IIC's code (xu-ji/IIC), 2.2e-16. In half precision it would be 0, and its logarithm infinite.
EPS = sys.float_info.epsilon


def mutual_information_loss(first: Tensor, others: Tensor, valid: Tensor) -> Tensor:
    """Return -I(z, z') of equation 2 in nats, float32 [S] for S sub-heads, even under autocast.

        P    = mean over all ranks' pairs of z z'^T, then (P + P^T) / 2 over its sum,
               no cell and no marginal below EPS
        loss = -sum of P_cd (log P_cd - log P_c - log P_d)

    The loss is -log C at best, and 0 for one cluster or for independent views. It is that of all ranks'
    pairs, on every rank. The gradient of this rank's inputs is multiplied by the number of ranks. So the mean
    over ranks that DDP takes is the gradient of the loss. Without a valid sample, the loss is within C^2 *
    1e-14 of 0.

    Args:
        first: Distributions over C clusters, [B, S, C], of a view of this rank's samples. B may be 0 and may
            differ between ranks.
        others: [K, B, S, C], those of K further views; there are K * B pairs.
        valid: bool [B]; the distributions of invalid samples may be infinite or NaN.
    """
    with no_tf32(), torch.autocast(first.device.type, enabled=False):
        ignored = ~valid[:, None, None]
        z = first.float().masked_fill(ignored, 0.0)
        # P is linear in z', so the mean of the other views suffices.
        z_other = others.float().mean(0).masked_fill(ignored, 0.0)
        joint: Tensor = _SumOverRanks.apply(torch.einsum("bsc,bsd->scd", z, z_other))
        joint = (joint + joint.transpose(1, 2)) / 2
        total = joint.sum((1, 2), keepdim=True)
        joint = joint / torch.where(total > 0, total, 1.0)
        rows, columns = joint.sum(2, keepdim=True), joint.sum(1, keepdim=True)
        logs = [part.clamp(min=EPS).log() for part in (joint, rows, columns)]
        return (joint.clamp(min=EPS) * (logs[1] + logs[2] - logs[0])).sum((1, 2))


class _SumOverRanks(torch.autograd.Function):
    """An autograd function for the sum of all ranks' tensors, without communication in the backward pass.

    All ranks compute the same from the sum, so its gradient is known everywhere.
    """

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
