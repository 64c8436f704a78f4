"""Run k-means by Lloyd's iterations on rows of several ranks (DeepCluster, arXiv 1807.05520, equation 2).

For 1.28 million rows of 256 floats, one of 8 ranks holds 164 MB on its device, and 10,000 centroids take 10
MB on each. An iteration is one matrix product (6.6 TFLOP over all ranks) and one exchange of 20 MB.

Whitening: 1.28 million features of 4,096 float16 numbers take 10.5 GB, or 1.3 GB on each of 8 ranks (arXiv
1807.05520). Each rank's rows stay in the host's memory and pass through the device block by block. The
ranks exchange 134 MB, a covariance of 4,096 x 4,096 in float64.

Rows that are wide stay on the host too, as float16: 1.28 million of 2,048 numbers take 5.2 GB. Each iteration
moves them to the device block by block.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastpsl.console.progress import operation
from fastpsl.engine.distributed import World, sum_over_ranks
from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.kernels.tf32 import no_tf32

# The share of the largest variance below which float32 sums cannot tell a variance from 0, as of dead units.
_NO_VARIANCE = 1e-7


@dataclass(frozen=True)
class Whitening:
    """A linear map from D to d uncorrelated features of variance 1, float32 on the device."""

    mean: Tensor  # [D]
    matrix: Tensor  # [D, d], principal directions over the square roots of their variances

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the whitened rows, float32 [n, d] on the device, of rows [n, D] of any floating dtype."""
        with no_tf32():
            return (rows.to(self.mean.device).float() - self.mean) @ self.matrix


def fit_whitening(blocks: Sequence[Tensor], width: int, world: World) -> Whitening:
    """Fit the whitening to all ranks' rows, blocks [n, D] of floats on any device, for `width` of D columns.

    A direction without variance (of dead units, or if there are at most `width` rows) maps to zeros. Sums are
    float64, so two ranks and one rank differ in the last bits alone. The result is that of sklearn's
    PCA(whiten=True) up to signs. It is the same on every rank.
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


# Rows are summed as integers in units of 2**-32. Integer sums are the same in any order, so for any number of
# ranks and for a GPU's atomic additions. The unit is below float32's resolution in a row of length 1, and
# sums of 2**31 rows fit an int64.
_ONE = 2.0**32
_BLOCK_DISTANCES = 1 << 26  # or numbers of rows: 256 MiB
_SPLIT = 1 / 1024  # as in faiss


def k_means(
    rows: Tensor, initial: Tensor, num_iterations: int, world: World
) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster the rows of all ranks: float16 or float32 [n, d], of length 1 at most; n may be 0 on a rank.

    The rows may be on the host. The centroids, float32 [k, d] on the device, begin at `initial`, equal on
    every rank, and move `num_iterations` times.
    Then each row gets the nearest one. A centroid without rows is put beside the biggest cluster's
    (`split_biggest`), but the last assignment may leave clusters empty. Returns labels int64 [n] of this
    rank's rows, the centroids, and the mean squared distance of all ranks' rows to them.
    """
    assert rows.dtype in (torch.float16, torch.float32) and initial.dtype == torch.float32
    assert rows.shape[1:] == initial.shape[1:]
    for part in _blocks(rows, initial):  # no copy of all in float32
        lengths = torch.linalg.vector_norm(part, dim=1, dtype=torch.float32)
        assert not len(part) or float(lengths.max()) < 1.001, "rows longer than 1"
    centroids = initial
    with operation("k-means", "iterations", num_iterations) as progress:
        for _ in progress.track(range(num_iterations)):
            centroids = _moved(rows, centroids, world)
    labels = torch.empty(len(rows), dtype=torch.long, device=initial.device)
    total, start = torch.zeros(2, dtype=torch.float64, device=initial.device), 0
    for block, nearest, squared in _assigned(rows, centroids):
        labels[start : start + len(block)] = nearest
        start += len(block)
        total[0] += squared.clamp(min=0).sum(dtype=torch.float64)
    total[1] = len(rows)
    total = sum_over_ranks(world, total)
    return labels, centroids, total[0] / total[1]


def clusters_of_samples(
    rows: Tensor,
    indices: np.ndarray,
    num_samples: int,
    *,
    num_clusters: int,
    num_iterations: int,
    seed: int,
    epoch: int,
    world: World,
) -> tuple[Tensor, Tensor]:
    """Cluster rows as `k_means` does, beginning at `drawn_rows`, and return each sample's cluster.

    Returns labels int32 [num_samples], the same on every rank and 0 for samples without a row, and the mean
    squared distance.
    """
    initial = drawn_rows(rows, indices, num_clusters, num_samples, seed, epoch, world)
    nearest, _, distance = k_means(rows, initial, num_iterations, world)
    labels = torch.zeros(num_samples, dtype=torch.int32, device=world.device)
    labels[torch.from_numpy(indices).to(world.device)] = nearest.to(torch.int32)
    return sum_over_ranks(world, labels), distance


def drawn_rows(
    rows: Tensor, indices: np.ndarray, num: int, num_samples: int, seed: int, epoch: int, world: World
) -> Tensor:
    """Draw rows of random samples, float32 [num, d], equal on every rank and for any number of ranks.

    This rank's rows are [n, d], and `indices`, int64 [n], has the sample of each. A sample has one at most.
    """
    has_row = torch.zeros(num_samples, dtype=torch.int32, device=world.device)
    has_row[torch.from_numpy(indices).to(world.device)] = 1
    samples = np.flatnonzero(sum_over_ranks(world, has_row).cpu().numpy())
    if len(samples) < num:
        raise ValueError(
            f"--num-clusters {num}: only {len(samples)} images can be decoded; give at most {len(samples)}"
        )
    high, low = words(Keys(seed, epoch, samples), Slot.TASK, 2).astype(np.uint64).T
    place = np.full(num_samples, -1)
    place[samples[np.argsort((high << np.uint64(32)) | low, kind="stable")[:num]]] = np.arange(num)
    own = np.flatnonzero(place[indices] >= 0)
    initial = torch.zeros(num, rows.shape[1], device=world.device)
    initial[place[indices[own]]] = rows[own].to(initial)
    return sum_over_ranks(world, initial)


def split_biggest(centroids: Tensor, counts: list[int]) -> Tensor:
    """Return the centroids, float32 [k, d] on the host, with each empty one beside one that is split.

    An empty centroid, the lowest first, halves the biggest (of equal ones the lowest). Both stand where that
    one was, moved apart by 1/1024 of each coordinate with alternating signs, and count half of its rows each.
    faiss draws the centroid to be split by its size.
    """
    centroids = centroids.clone()
    signs = 1 - 2 * (torch.arange(centroids.shape[1]) % 2)
    biggest = [(-count, number) for number, count in enumerate(counts) if count]
    heapq.heapify(biggest)
    for empty in (number for number, count in enumerate(counts) if not count):
        count, number = biggest[0]
        old = centroids[number].clone()
        centroids[empty], centroids[number] = old * (1 + _SPLIT * signs), old * (1 - _SPLIT * signs)
        half = -count // 2
        heapq.heapreplace(biggest, (count + half, number))
        heapq.heappush(biggest, (-half, empty))
    return centroids


def _moved(rows: Tensor, centroids: Tensor, world: World) -> Tensor:
    """Return the mean of each centroid's nearest rows, after `split_biggest` if a centroid has none."""
    num, width = centroids.shape
    sums = torch.zeros(num, width + 1, dtype=torch.long, device=centroids.device)  # the last column counts
    for block, nearest, _ in _assigned(rows, centroids):
        sums[:, :width].index_add_(0, nearest, (block * _ONE).round().long())
        sums[:, width].index_add_(0, nearest, torch.ones_like(nearest))
    counts = sum_over_ranks(world, sums)[:, width]
    means = (sums[:, :width].double() / (counts[:, None].clamp(min=1) * _ONE)).float()
    if int(counts.min()):
        return means
    return split_biggest(means.cpu(), counts.tolist()).to(centroids.device)


def _blocks(rows: Tensor, centroids: Tensor) -> Sequence[Tensor]:
    """Return the rows in blocks, of which neither numbers nor distances to the centroids take much memory."""
    return rows.split(max(1, _BLOCK_DISTANCES // max(centroids.shape)))


def _assigned(rows: Tensor, centroids: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the rows block by block, float32 on the device, their nearest centroids and squared distances."""
    halves = centroids.square().sum(1) / 2
    for part in _blocks(rows, centroids):
        block = part.to(centroids)
        with no_tf32():  # half of the squared distance, less half of the row's own squared length
            nearest = torch.addmm(halves, block, centroids.T, alpha=-1).min(1)
        yield block, nearest.indices, 2 * nearest.values + block.square().sum(1)
