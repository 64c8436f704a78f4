"""Run k-means by Lloyd's iterations on rows of several ranks (DeepCluster, arXiv 1807.05520, equation 2).

For 1.28 million rows of 256 floats, one of 8 ranks holds 164 MB on its device, and 10,000 centroids take 10
MB on each. An iteration is one matrix product (6.6 TFLOP over all ranks) and one exchange of 20 MB.
"""

import heapq
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fastpsl.console.progress import operation
from fastpsl.engine.distributed import World, sum_over_ranks
from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.kernels.tf32 import no_tf32

# Rows are summed as integers in units of 2**-32. Integer sums are the same in any order, so for any number of
# ranks and for a GPU's atomic additions. The unit is below float32's resolution in a row of length 1, and
# sums of 2**31 rows fit an int64.
_ONE = 2.0**32
_BLOCK_DISTANCES = 1 << 26  # 256 MiB
_SPLIT = 1 / 1024  # as in faiss


def k_means(
    rows: Tensor, initial: Tensor, num_iterations: int, world: World
) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster the rows of all ranks.

    The centroids move `num_iterations` times; then each row gets the nearest one. A centroid without rows is
    put beside the biggest cluster's (`split_biggest`), but the last assignment may leave clusters empty.

    Args:
        rows: This rank's rows, float32 [n, d] on the device, of length 1 at most; n may be 0.
        initial: The first centroids, float32 [k, d], equal on every rank, at most as many as there are rows.
        num_iterations: Number of iterations.
        world: The ranks.

    Returns:
        Labels int64 [n] of this rank's rows, centroids float32 [k, d], and the mean squared distance of all
        ranks' rows to their centroids.
    """
    assert rows.dtype == initial.dtype == torch.float32 and rows.shape[1:] == initial.shape[1:]
    assert not len(rows) or float(torch.linalg.vector_norm(rows, dim=1).max()) < 1.001, "rows longer than 1"
    centroids = initial
    with operation("k-means", "iterations", num_iterations) as progress:
        for _ in progress.track(range(num_iterations)):
            centroids = _moved(rows, centroids, world)
    labels = torch.empty(len(rows), dtype=torch.long, device=rows.device)
    total = torch.zeros(2, dtype=torch.float64, device=rows.device)
    for part, nearest, squared in _assigned(rows, centroids):
        labels[part] = nearest
        total[0] += squared.clamp(min=0).sum(dtype=torch.float64)
    total[1] = len(rows)
    total = sum_over_ranks(world, total)
    return labels, centroids, total[0] / total[1]


def drawn_rows(
    rows: Tensor, indices: np.ndarray, num: int, num_samples: int, seed: int, epoch: int, world: World
) -> Tensor:
    """Draw rows of random samples, float32 [num, d], equal on every rank and for any number of ranks.

    Args:
        rows: This rank's rows [n, d].
        indices: The sample of each row, int64 [n] in 0 … num_samples - 1; a sample has one row at most.
        num: Number of rows to draw.
        num_samples: Number of samples of the data.
        seed: Seed of the draw.
        epoch: Epoch of the draw.
        world: The ranks.

    Raises:
        ValueError: There are fewer rows than `num`.
    """
    has_row = torch.zeros(num_samples, dtype=torch.int32, device=rows.device)
    on_device = torch.from_numpy(indices).to(rows.device)
    has_row[on_device] = 1
    samples = np.flatnonzero(sum_over_ranks(world, has_row).cpu().numpy())
    if len(samples) < num:
        raise ValueError(
            f"--num-clusters {num}: only {len(samples)} images can be decoded; give at most {len(samples)}"
        )
    high, low = words(Keys(seed, epoch, samples), Slot.TASK, 2).astype(np.uint64).T
    chosen = samples[np.argsort((high << np.uint64(32)) | low, kind="stable")[:num]]
    place = torch.full((num_samples,), -1, dtype=torch.long, device=rows.device)
    place[torch.from_numpy(chosen).to(rows.device)] = torch.arange(num, device=rows.device)
    positions = place[on_device]
    initial = torch.zeros(num, rows.shape[1], device=rows.device)
    initial[positions[positions >= 0]] = rows[positions >= 0]
    return sum_over_ranks(world, initial)


def split_biggest(centroids: Tensor, counts: list[int]) -> Tensor:
    """Return the centroids, float32 [k, d] on the host, with each empty one beside one that is split.

    An empty centroid, the lowest first, halves the biggest (of equal ones the lowest). Both stand where that
    one was, moved apart by 1/1024 of each coordinate with alternating signs, and count half of its rows each.
    faiss draws the centroid to be split by its size.

    Args:
        centroids: float32 [k, d].
        counts: Number of rows of each centroid.
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
    sums = torch.zeros(num, width + 1, dtype=torch.long, device=rows.device)  # the last column counts
    for part, nearest, _ in _assigned(rows, centroids):
        sums[:, :width].index_add_(0, nearest, (rows[part] * _ONE).round().long())
        sums[:, width].index_add_(0, nearest, torch.ones_like(nearest))
    counts = sum_over_ranks(world, sums)[:, width]
    means = (sums[:, :width].double() / (counts[:, None].clamp(min=1) * _ONE)).float()
    if int(counts.min()):
        return means
    return split_biggest(means.cpu(), counts.tolist()).to(rows.device)


def _assigned(rows: Tensor, centroids: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield, block by block, the rows' slice, their nearest centroids and the squared distances."""
    halves = centroids.square().sum(1) / 2
    size = max(1, _BLOCK_DISTANCES // len(centroids))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        with no_tf32():  # half of the squared distance, less half of the row's own squared length
            nearest = torch.addmm(halves, rows[part], centroids.T, alpha=-1).min(1)
        yield part, nearest.indices, 2 * nearest.values + rows[part].square().sum(1)
