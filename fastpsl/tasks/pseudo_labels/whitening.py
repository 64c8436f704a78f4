"""PCA and whitening of rows that lie on several ranks (DeepCluster, arXiv 1807.05520, section 4: "PCA-reduced to 256, whitened").

1.28 million features of 4,096 float16 are 10.5 GB, on 8 ranks 1.3 GB each: they stay in the hosts' memory, a rank's own rows alone,
and pass through the device block by block. What is exchanged is 134 MB: one covariance of 4,096 x 4,096 in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from fastpsl.engine.distributed import World, sum_over_ranks
from fastpsl.kernels.tf32 import no_tf32

# Of the largest variance: what float32 sums cannot tell from nothing, such as units that are never on.
_NO_VARIANCE = 1e-7


@dataclass(frozen=True)
class Whitening:
    """mean: float32 [D]; matrix: float32 [D, d], principal directions over the square roots of their variances; on the device."""

    mean: Tensor
    matrix: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """[n, D] of any floating type to float32 [n, d] on the device: of variance 1 each and uncorrelated, over all rows."""
        with no_tf32():
            return (rows.to(self.mean.device).float() - self.mean) @ self.matrix


def fit_whitening(blocks: Sequence[Tensor], width: int, world: World) -> Whitening:
    """Of the rows of all ranks; the same on every rank.

    blocks: this rank's rows, [n, D] each of any floating type, anywhere; of a block or more. width: d, at most D and the number
    of rows. A direction without variance (of dead units, or of fewer rows than `width` + 1) gives zeros, and no infinities.
    Sums are float64: two ranks have what one has up to its last bits. All is as sklearn's PCA(whiten=True), up to signs.
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
    there = variances > _NO_VARIANCE * variances[0]
    scales = torch.where(there, variances.clamp(min=torch.finfo(torch.float64).tiny).rsqrt(), 0.0)
    matrix = (directions * scales).float().contiguous()
    if world.size > 1:
        dist.broadcast(matrix, src=0)  # unlike GPUs may choose other signs
    return Whitening(mean, matrix)


def _principal(covariance: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Variances, falling, and directions in columns: all D, or `num_rows` where that is less, as the others have no variance."""
    size = len(covariance)
    if num_rows < size:
        # Random sums of the columns span what the columns span: a matrix of num_rows is taken apart in place of one of D, which
        # takes two CPU cores half a minute.
        random = torch.Generator().manual_seed(0)
        sums = torch.randn(size, num_rows, dtype=torch.float64, generator=random).to(covariance.device)
        basis = torch.linalg.qr(covariance @ sums).Q
        variances, directions = torch.linalg.eigh(basis.T @ covariance @ basis)
        directions = basis @ directions
    else:
        variances, directions = torch.linalg.eigh(covariance)
    return variances.flip(0), directions.flip(1)
