"""The exact k nearest neighbours of features by cosine, and what they vote for.

The matrix of all similarities is never made: 50,000 queries times 1.28 million would be 256 GB. Queries are kept on the device,
normalised, in float32; the bank passes by once, chunk by chunk, from memory or a memory map, and each query keeps its best k.
For C = 2048, k = 200 and the chunks below, on the device:

    queries         50,000 x 2,048 x 4 B                            410 MB
    bank's chunk    16,384 x 2,048 x (4 + 4) B                      268 MB   as read, and normalised
    similarities    1,024 x 16,384 x (4 + 4 + 8) B                  268 MB   their ordered bits, and keys
    best k          50,000 x 200 x 8 B                               80 MB

and on the host one chunk of the bank (67 MB in half precision) beside the pages of the memory map, which the system may drop.
More than 65,536 queries are taken in parts of so many, and the bank passes once for each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastpsl.kernels.tf32 import no_tf32

QUERY_PART, QUERY_CHUNK, BANK_CHUNK = 65_536, 1_024, 16_384
_VOTE_CHUNK = 4_096  # queries whose scores of all classes are held at once
_INDEX_BITS = 32
_MAX_INDEX = 2**_INDEX_BITS - 1
_ABSENT = -2.0  # below every cosine


class Neighbours(NamedTuple):
    """Of Q queries, best first; equal similarities in the order of their rows."""

    similarities: Tensor  # float32 [Q, k], cosines
    rows: Tensor  # int64 [Q, k], in the bank


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
    """The `k` rows of `bank` [M, C] with the highest cosine to each of `queries` [Q, C]; on the CPU.

    Any float dtype, on any device or in a memory map; computed in float32, TF32 off. Rows of the bank that are not finite are
    nobody's neighbours. on_million_pairs: is told how many millions of `num_million_pairs` are done. ValueError where k is not from 1 to M.
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
    """int64 [part, k]: the keys of each query's best k, falling."""
    normalised = functional.normalize(_read(queries, part, device), dim=1)
    best: list[Tensor | None] = [None] * len(list(_slices(len(normalised), query_chunk)))
    for rows in _slices(len(bank), bank_chunk):
        others = _read(bank, rows, device)
        absent = ~others.isfinite().all(1)
        others = functional.normalize(others, dim=1).T
        indices = torch.arange(rows.start, rows.stop, device=device)
        for number, chunk in enumerate(_slices(len(normalised), query_chunk)):
            similarities = (normalised[chunk] @ others).masked_fill_(absent, _ABSENT)
            found = _keys(similarities, indices).topk(min(k, len(indices)), dim=1).values
            before = best[number]
            if before is not None:
                found = torch.cat([before, found], 1)
                found = found.topk(min(k, found.shape[1]), dim=1).values
            best[number] = found
        on_million_pairs((part.start * len(bank) + rows.stop * len(normalised)) // 1_000_000)
    return torch.cat([found for found in best if found is not None])


def _slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _read(features: Tensor | np.ndarray, rows: slice, device: torch.device) -> Tensor:
    """Some rows in float32 on the device; of a memory map these alone are read."""
    chunk = features[rows]
    if isinstance(chunk, np.ndarray):
        chunk = torch.from_numpy(np.array(chunk))
    return chunk.to(device).float()


def _keys(similarities: Tensor, indices: Tensor) -> Tensor:
    """int64 whose order is that of the similarities and, where they are equal, the reverse of the indices'.

    topk alone may choose among equals as it likes. The bits of a float32 rise with it, once those of negative ones are flipped.
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
    """float64 [Q, num_classes]: each of the first k neighbours adds exp(similarity / temperature) to its class.

    labels: int64 [M], of the bank. A query's weights are divided by that of its nearest, so that none overflows.
    """
    similarities = neighbours.similarities[:, :k].double()
    weights = ((similarities - similarities[:, :1]) / temperature).exp()
    scores = torch.zeros(len(weights), num_classes, dtype=torch.float64)
    return scores.scatter_add_(1, labels[neighbours.rows[:, :k]], weights)


def majority_scores(neighbours: Neighbours, labels: Tensor, num_classes: int, k: int) -> Tensor:
    """float64 [Q, num_classes]: each class's number among the first k neighbours; of equal ones the nearer class is ahead.

    "Ahead" is by less than 1: the score is the number plus 1 / (1 + place of the class's nearest neighbour, from 1).
    """
    votes = labels[neighbours.rows[:, :k]]
    scores = torch.zeros(len(votes), num_classes, dtype=torch.float64)
    scores.scatter_add_(1, votes, torch.ones(votes.shape, dtype=torch.float64))
    places = torch.arange(1, k + 1, dtype=torch.float64).expand(votes.shape)
    nearer = torch.zeros_like(scores).scatter_reduce_(1, votes, 1 / (1 + places), "amax")
    return scores + nearer


def places(scores: Tensor, truth: Tensor) -> Tensor:
    """int64 [Q]: before how many classes' scores the true class's does not come; 0 is right, below 5 is among the top 5.

    Equal scores stand in the order of the classes. A class without a vote is behind all of them.
    """
    own = scores.gather(1, truth[:, None])
    smaller = torch.arange(scores.shape[1]) < truth[:, None]
    ahead = (scores > own) | ((scores == own) & smaller)
    return ahead.sum(1).where(own[:, 0] > 0, scores.shape[1])


def count_correct(
    neighbours: Neighbours,
    labels: Tensor,
    truth: Tensor,
    num_classes: int,
    ks: Sequence[int],
    temperature: float,
) -> Mapping[str, int]:
    """How many queries each k and vote gets right: top1_k20, top5_k20 (weighted) and top1_k20_majority.

    labels: int64 [M] of the bank; truth: int64 [Q] of the queries.
    """
    totals = {name: 0 for k in ks for name in (f"top1_k{k}", f"top5_k{k}", f"top1_k{k}_majority")}
    for chunk in _slices(len(truth), _VOTE_CHUNK):
        found = Neighbours(*(column[chunk] for column in neighbours))
        own = truth[chunk]
        for k in ks:
            weighted = places(weighted_scores(found, labels, num_classes, k, temperature), own)
            majority = places(majority_scores(found, labels, num_classes, k), own)
            for name, right in (
                (f"top1_k{k}", weighted < 1),
                (f"top5_k{k}", weighted < 5),
                (f"top1_k{k}_majority", majority < 1),
            ):
                totals[name] += int(right.sum())
    return totals
