"""k-means by Lloyd's iterations over rows that lie on several ranks (DeepCluster, arXiv 1807.05520, equation 2).

Of 1.28 million rows of 256 floats one rank of 8 holds 164 MB on its device; 10,000 centroids are 10 MB on each. An iteration is one
product of the two (6.6 TFLOP over all ranks) and one exchange of 20 MB.
"""

import heapq
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fastpsl.engine.distributed import World, sum_over_ranks
from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.kernels.tf32 import no_tf32
from fastpsl.pipelines.doing import doing

# Rows are added up as integers of this part of 1: the sum is the same in any order, so on any number of ranks and by a GPU's atomic
# additions too. 2**-32 is less than float32 can tell in a row of length 1, and 2**31 rows fit an int64.
_ONE = 2.0**32
_BLOCK_DISTANCES = 1 << 26  # 256 MiB of them at a time
_SPLIT = 1 / 1024  # faiss's too


def k_means(
    rows: Tensor, initial: Tensor, num_iterations: int, world: World
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels int64 [n] of this rank's rows, centroids float32 [k, d], and the mean squared distance of all ranks' rows to theirs.

    rows: float32 [n, d] on the device, none longer than 1; n may be 0. initial: float32 [k, d], equal on every rank; not more than there
    are rows in all. Centroids are moved `num_iterations` times, then each row gets the nearest one.
    A centroid without rows is laid beside the biggest one's (`split_biggest`); the last labels may leave some empty all the same.
    """
    assert rows.dtype == initial.dtype == torch.float32 and rows.shape[1:] == initial.shape[1:]
    assert not len(rows) or float(torch.linalg.vector_norm(rows, dim=1).max()) < 1.001, "rows longer than 1"
    centroids = initial
    with doing("k-means", "iterations", num_iterations) as told:
        for _ in told.over(range(num_iterations)):
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
    """float32 [num, d]: the rows of samples drawn by (seed, epoch) among those of all ranks; equal on any number of ranks.

    indices: int64 [n], the sample of each of this rank's rows, in 0..num_samples-1, none on two ranks or twice. ValueError where
    there are fewer than `num`.
    """
    there = torch.zeros(num_samples, dtype=torch.int32, device=rows.device)
    mine = torch.from_numpy(indices).to(rows.device)
    there[mine] = 1
    known = np.flatnonzero(sum_over_ranks(world, there).cpu().numpy())
    if len(known) < num:
        raise ValueError(f"{len(known)} images can be decoded, for {num} clusters: ask for fewer")
    high, low = words(Keys(seed, epoch, known), Slot.TASK, 2).astype(np.uint64).T
    drawn = known[np.argsort((high << np.uint64(32)) | low, kind="stable")[:num]]
    place = torch.full((num_samples,), -1, dtype=torch.long, device=rows.device)
    place[torch.from_numpy(drawn).to(rows.device)] = torch.arange(num, device=rows.device)
    mine = place[mine]
    initial = torch.zeros(num, rows.shape[1], device=rows.device)
    initial[mine[mine >= 0]] = rows[mine >= 0]
    return sum_over_ranks(world, initial)


def split_biggest(centroids: Tensor, counts: list[int]) -> Tensor:
    """The centroids with those of no rows laid beside others: float32 [k, d] on the host, `counts` rows each.

    Each empty one, the lowest first, halves the biggest (ties: the lowest): both stand where that one was, moved apart by 1/1024 of each
    coordinate, up and down in turn, and count for half of its rows. faiss draws the one to be split by size.
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
    """Each centroid as the mean of the rows that it is nearest to."""
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
    """Block by block: which rows, the number of the nearest centroid, and the squared distance to it."""
    halves = centroids.square().sum(1) / 2
    size = max(1, _BLOCK_DISTANCES // len(centroids))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        with no_tf32():  # half of the squared distance, less half of the row's own squared length
            nearest = torch.addmm(halves, rows[part], centroids.T, alpha=-1).min(1)
        yield part, nearest.indices, 2 * nearest.values + rows[part].square().sum(1)
