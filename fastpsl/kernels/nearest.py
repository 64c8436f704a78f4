"""The exact k nearest neighbours of features by cosine similarity, and their votes.

The matrix of all similarities is never stored: for 50,000 queries and 1.28 million features it would take 256
GB. The queries stay on the device, normalised, in float32. The bank streams past once, chunk by chunk, from
memory or a memory map, and each query keeps its best k. For C = 2048, k = 200 and the chunks below this
takes, on the device:

    queries         50,000 x 2,048 x 4 B                            410 MB
    bank's chunk    16,384 x 2,048 x (4 + 4) B                      268 MB   raw, and normalised
    similarities    1,024 x 16,384 x (4 + 4 + 8) B                  268 MB   with their ordered bits and keys
    best k          50,000 x 200 x 8 B                               80 MB

The host holds one chunk of the bank (67 MB in half precision), besides the pages of the memory map, which the
system may drop. More than 65,536 queries are split into parts of that size, and the bank streams once for
each part.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastpsl.kernels.tf32 import no_tf32

# By the memory that they take, as the docstring counts it. The speeds of others were not compared.
QUERY_PART, QUERY_CHUNK, BANK_CHUNK = 65_536, 1_024, 16_384
_VOTE_CHUNK = 4_096  # queries that have their scores of all classes in memory at once
_INDEX_BITS = 32
_MAX_INDEX = 2**_INDEX_BITS - 1
_ABSENT = -2.0  # below every cosine


class Neighbours(NamedTuple):
    """The neighbours of Q queries, best first; equal similarities are in the order of their rows.

    Attributes:
        similarities: float32 [Q, k], cosines.
        rows: int64 [Q, k], rows of the bank.
    """

    similarities: Tensor
    rows: Tensor


@torch.no_grad()
def nearest(
    queries: Tensor | np.ndarray,
    bank: Tensor | np.ndarray,
    k: int,
    device: str | torch.device = "cpu",
    *,
    query_part: int = QUERY_PART,
    query_chunk: int = QUERY_CHUNK,
    bank_chunk: int = BANK_CHUNK,
    on_million_pairs: Callable[[int], object] = lambda num_pairs: None,
) -> Neighbours:
    """Find the rows of a bank with the highest cosine similarity to each query.

    `queries` [Q, C] and `bank` [M, C] are of any floating dtype, on any device or in a memory map. Rows of
    the bank that are not finite are never neighbours. Everything is computed in float32 with TF32 off, and
    the neighbours are on the CPU. The bank streams once for `query_part` queries. A matrix product has
    `query_chunk` of them and `bank_chunk` rows.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k {k}: there are {len(bank):,} features to be neighbours; give a k from 1 to that")
    with no_tf32():
        parts = [
            _best_keys(
                queries, part, bank, k, torch.device(device), query_chunk, bank_chunk, on_million_pairs
            ).cpu()
            for part in _slices(len(queries), query_part)
        ]
    keys = torch.cat(parts) if parts else torch.empty(0, k, dtype=torch.int64)
    return Neighbours(_similarity_of(keys), _MAX_INDEX - (keys & _MAX_INDEX))


def num_million_pairs(queries: Sized, bank: Sized) -> int:
    """Return how many millions of similarities a search for neighbours computes."""
    return len(queries) * len(bank) // 1_000_000


def _best_keys(
    queries: Tensor | np.ndarray,
    part: slice,
    bank: Tensor | np.ndarray,
    k: int,
    device: torch.device,
    query_chunk: int,
    bank_chunk: int,
    on_million_pairs: Callable[[int], object],
) -> Tensor:
    """Return int64 [part, k]: the keys of each query's best k, descending."""
    normalised = functional.normalize(_read(queries, part, device), dim=1)
    best: list[Tensor | None] = [None] * len(list(_slices(len(normalised), query_chunk)))
    for rows in _slices(len(bank), bank_chunk):
        bank_rows = _read(bank, rows, device)
        absent = ~bank_rows.isfinite().all(1)
        bank_rows = functional.normalize(bank_rows, dim=1).T
        indices = torch.arange(rows.start, rows.stop, device=device)
        for number, chunk in enumerate(_slices(len(normalised), query_chunk)):
            similarities = (normalised[chunk] @ bank_rows).masked_fill_(absent, _ABSENT)
            keys = _keys(similarities, indices).topk(min(k, len(indices)), dim=1).values
            previous = best[number]
            if previous is not None:
                keys = torch.cat([previous, keys], 1)
                keys = keys.topk(min(k, keys.shape[1]), dim=1).values
            best[number] = keys
        on_million_pairs((part.start * len(bank) + rows.stop * len(normalised)) // 1_000_000)
    return torch.cat([keys for keys in best if keys is not None])


def _slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _read(features: Tensor | np.ndarray, rows: slice, device: torch.device) -> Tensor:
    """Return some rows as float32 on the device; of a memory map only these are read."""
    chunk = features[rows]
    if isinstance(chunk, np.ndarray):
        chunk = torch.from_numpy(np.array(chunk))
    return chunk.to(device).float()


def _keys(similarities: Tensor, indices: Tensor) -> Tensor:
    """Return int64 keys in the order of the similarities, with ties in the reverse order of the indices.

    Without them topk may choose any of equal values. The bits of a float32, read as an integer, are in its
    order once those of negative numbers are flipped.
    """
    bits = similarities.add_(0.0).view(torch.int32)  # -0.0 becomes 0.0
    ordered = (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)
    return ordered.long().bitwise_left_shift_(_INDEX_BITS).bitwise_or_(_MAX_INDEX - indices)


def _similarity_of(keys: Tensor) -> Tensor:
    ordered = (keys >> _INDEX_BITS).int()
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)


def weighted_scores(
    neighbours: Neighbours, labels: Tensor, num_classes: int, k: int, temperature: float
) -> Tensor:
    """Return the classes' scores as sums of exp(similarity / temperature) over each query's neighbours.

    A query's weights are divided by that of its nearest neighbour, so that none overflows.

    `labels` is int64 [M], those of the bank. The first `k` neighbours vote. The result is float64 [Q,
    num_classes].
    """
    similarities = neighbours.similarities[:, :k].double()
    weights = ((similarities - similarities[:, :1]) / temperature).exp()
    scores = torch.zeros(len(weights), num_classes, dtype=torch.float64)
    return scores.scatter_add_(1, labels[neighbours.rows[:, :k]], weights)


def majority_scores(neighbours: Neighbours, labels: Tensor, num_classes: int, k: int) -> Tensor:
    """Return the classes' scores as their counts among each query's neighbours.

    Ties go to the class with the nearer member, because each count has 1 / (1 + rank) added to it. The rank
    is that of the class's nearest neighbour, from 1, so at most a half is added.

    The arguments and the result are those of `weighted_scores`.
    """
    votes = labels[neighbours.rows[:, :k]]
    scores = torch.zeros(len(votes), num_classes, dtype=torch.float64)
    scores.scatter_add_(1, votes, torch.ones(votes.shape, dtype=torch.float64))
    ranks = torch.arange(1, k + 1, dtype=torch.float64).expand(votes.shape)
    nearer = torch.zeros_like(scores).scatter_reduce_(1, votes, 1 / (1 + ranks), "amax")
    return scores + nearer


def places(scores: Tensor, truth: Tensor) -> Tensor:
    """Return the rank of each true class among the scores, from 0.

    Rank 0 is a correct answer, below 5 is among the top 5. Equal scores are ranked in the order of the
    classes. A true class without a vote gets the rank num_classes, or 5 if there are fewer classes.

    `scores` is float64 [Q, num_classes], `truth` and the result are int64 [Q].
    """
    true_score = scores.gather(1, truth[:, None])
    smaller = torch.arange(scores.shape[1]) < truth[:, None]
    ahead = (scores > true_score) | ((scores == true_score) & smaller)
    return ahead.sum(1).where(true_score[:, 0] > 0, max(scores.shape[1], 5))


def count_correct(
    neighbours: Neighbours,
    labels: Tensor,
    truth: Tensor,
    num_classes: int,
    ks: Sequence[int],
    temperature: float,
) -> Mapping[str, int]:
    """Count the queries that each k and vote gets right.

    `labels` is int64 [M], those of the bank, and `truth` int64 [Q]. Counts are by name: for k = 20, top1_k20
    and top5_k20 (weighted votes) and top1_k20_majority.
    """
    totals = {name: 0 for k in ks for name in (f"top1_k{k}", f"top5_k{k}", f"top1_k{k}_majority")}
    for chunk in _slices(len(truth), _VOTE_CHUNK):
        part = Neighbours(*(column[chunk] for column in neighbours))
        true_classes = truth[chunk]
        for k in ks:
            weighted = places(weighted_scores(part, labels, num_classes, k, temperature), true_classes)
            majority = places(majority_scores(part, labels, num_classes, k), true_classes)
            for name, right in (
                (f"top1_k{k}", weighted < 1),
                (f"top5_k{k}", weighted < 5),
                (f"top1_k{k}_majority", majority < 1),
            ):
                totals[name] += int(right.sum())
    return totals
