"""Fit PCA with whitening to rows of several ranks (DeepCluster, section 4: "PCA-reduced to 256, whitened").

1.28 million features of 4,096 float16 numbers take 10.5 GB, or 1.3 GB on each of 8 ranks (arXiv 1807.05520).
Each rank's rows stay in the host's memory and pass through the device block by block. The ranks exchange 134
MB, a covariance of 4,096 x 4,096 in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from fastpsl.engine.distributed import World, sum_over_ranks
from fastpsl.kernels.tf32 import no_tf32

# The share of the largest variance below which float32 sums cannot tell a variance from 0, as of dead units.
_NO_VARIANCE = 1e-7


@dataclass(frozen=True)
class Whitening:
    """A linear map to uncorrelated features of variance 1.

    Attributes:
        mean: float32 [D] on the device.
        matrix: float32 [D, d] on the device, principal directions over the square roots of their variances.
    """

    mean: Tensor
    matrix: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the whitened rows, float32 [n, d] on the device, of rows [n, D] of any floating dtype."""
        with no_tf32():
            return (rows.to(self.mean.device).float() - self.mean) @ self.matrix


def fit_whitening(blocks: Sequence[Tensor], width: int, world: World) -> Whitening:
    """Fit the whitening to the rows of all ranks; it is the same on every rank.

    A direction without variance (of dead units, or if there are at most `width` rows) maps to zeros. Sums are
    float64, so two ranks and one rank differ in the last bits alone. The result is that of sklearn's
    PCA(whiten=True) up to signs.

    Args:
        blocks: This rank's rows, one or more blocks [n, D] of any floating dtype on any device.
        width: d, at most D and the number of rows.
        world: The ranks.
    """
    device, size = world.device, blocks[0].shape[1]
    sums = torch.zeros(size + 1, dtype=torch.float64, device=device)
    for block in blocks:
        sums[:size] += block.to(device).sum(0, dtype=torch.float64)
        sums[size] += len(block)
    num_rows = sum_over_ranks(world, sums)[size]
    assert 1 <= width <= min(size, int(num_rows)), (width, size, num_rows)
    mean = (sums[:size] / num_rows).float()
    covariance = torch.zeros(size, size, dtype=torch.float64, device=device)
    with no_tf32():
        for block in blocks:
            centred = block.to(device).float() - mean
            covariance += centred.T @ centred
    sum_over_ranks(world, covariance)
    variances, directions = _principal(covariance / (num_rows - 1).clamp(min=1), int(num_rows))
    variances, directions = variances[:width], directions[:, :width]
    has_variance = variances > _NO_VARIANCE * variances[0]
    scales = torch.where(has_variance, variances.clamp(min=torch.finfo(torch.float64).tiny).rsqrt(), 0.0)
    matrix = (directions * scales).float().contiguous()
    if world.size > 1:
        dist.broadcast(matrix, src=0)  # because different GPUs may choose different signs
    return Whitening(mean, matrix)


def _principal(covariance: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Return the variances in falling order and the directions as columns, at most `num_rows` of them.

    Further directions have no variance.
    """
    size = len(covariance)
    if num_rows < size:
        # Random sums of the columns span the same space as the columns. So a matrix of num_rows is decomposed
        # instead of one of D, which takes two CPU cores half a minute.
        random = torch.Generator().manual_seed(0)
        sums = torch.randn(size, num_rows, dtype=torch.float64, generator=random).to(covariance.device)
        basis = torch.linalg.qr(covariance @ sums).Q
        variances, directions = torch.linalg.eigh(basis.T @ covariance @ basis)
        directions = basis @ directions
    else:
        variances, directions = torch.linalg.eigh(covariance)
    return variances.flip(0), directions.flip(1)
