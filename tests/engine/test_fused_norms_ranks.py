"""Fused BatchNorms of two processes share statistics if they are SyncBatchNorms.

This file stands alone because each process imports it.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

pytest.importorskip("triton", reason="triton is not installed")

from fastpsl.engine.fused_norms import fused
from tests.warm import on_ranks


def network() -> nn.Module:
    """Build a stem with a pool and two residual blocks, with a normalised shortcut and with a plain one."""
    torch.manual_seed(0)
    shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16))
    stem = nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    net = nn.Sequential(*stem, BasicBlock(8, 16, downsample=shortcut), BasicBlock(16, 16))
    return net.to(memory_format=torch.channels_last)


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def of_a_rank(shares: Sequence[slice], rank: int, images: Tensor) -> list[Tensor]:
    """Return the result, gradients and statistics for a rank's images; a single rank has BatchNorm."""
    net = network()
    if len(shares) > 1:
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    inputs = images[shares[rank]].contiguous(memory_format=torch.channels_last).requires_grad_()
    result = fused(net)(inputs)
    result.square().sum().backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    return [result.detach(), inputs.grad, *gradients, *net.buffers()]  # type: ignore[list-item]


SHARES = (slice(0, 2), slice(2, 5))


def in_a_process(rank: int, folder: str, images: Tensor) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(of_a_rank(SHARES, rank, images), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_have_statistics_together(tmp_path: Path) -> None:
    """Ranks with 2 and 3 images get what one process gets for all 5. Gradients add up."""
    images = torch.randn(5, 8, 7, 8)
    on_ranks(in_a_process, (str(tmp_path), images), 2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    alone = of_a_rank([slice(0, 5)], 0, images)
    num_parameters = len(list(network().parameters()))
    for number, (first, second, one) in enumerate(zip(*ranks, alone, strict=True)):
        if number < 2:
            assert apart(torch.cat([first, second]), one) < 1e-5
        elif number < 2 + num_parameters:
            assert apart(first + second, one) < 1e-4, number
        else:
            assert torch.equal(first, second) and torch.allclose(first.float(), one.float(), atol=1e-6)
