"""Score validation features by their nearest neighbours, on all ranks together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fastpsl.engine.distributed import World, sum_over_ranks
from fastpsl.engine.online_probe import find_neighbours
from fastpsl.evaluation.feature_file import FeatureFile
from fastpsl.kernels.nearest import Neighbours, count_correct
from fastpsl.pipelines.data.dataset import Dataset, require_labels, require_same_classes
from fastpsl.plots.neighbours import NUM_NEIGHBOURS

NUM_SHOWN = 8


@dataclass(frozen=True)
class Scores:
    """The kNN scores of one block, of samples that could be decoded."""

    correct: dict[str, int]  # with the names of `count_correct`
    num: int
    num_bank: int
    queries: np.ndarray  # this rank's, int64: every world-size-th one
    neighbours: Neighbours

    def numbers(self, vote: str) -> dict[str, float]:
        """Return the scores in percent of one vote, weighted or majority, or of both."""
        return {
            name: 100 * count / self.num
            for name, count in self.correct.items()
            if vote == "both" or name.endswith("_majority") == (vote == "majority")
        }

    def shown(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a few of this rank's queries, drawn by `seed`, their neighbours' rows and similarities."""
        chosen = np.random.default_rng((seed, len(self.queries))).permutation(len(self.queries))[:NUM_SHOWN]
        rows, similarities = self.neighbours.rows, self.neighbours.similarities
        return (
            self.queries[chosen],
            rows[chosen, :NUM_NEIGHBOURS].numpy(),
            similarities[chosen, :NUM_NEIGHBOURS].numpy(),
        )


def score_lines(scores: Sequence[Scores], blocks: Sequence[str], vote: str, backbone: str) -> list[str]:
    """Return tables of the scores of each block: a table per vote, a line per block, a column per k.

    Several lines or columns also get their mean, as in SSL++, Tables V and VI.
    """
    first, named = scores[0], f"{', '.join(blocks)} of {backbone}"
    lines = [f"{first.num:,} validation images, neighbours of {first.num_bank:,}; {named}"]
    for title, end in (("weighted", ""), ("majority", "_majority")):
        if vote not in (title, "both"):
            continue
        names = [name for name in first.numbers(title) if name.startswith("top1_")]
        heads = [f"k {name.removeprefix('top1_k').removesuffix(end)}" for name in names]
        rows, table = list(blocks), np.array([[each.numbers(title)[n] for n in names] for each in scores])
        if len(rows) > 1:
            rows, table = [*rows, "mean"], np.vstack([table, table.mean(0)])
        if len(heads) > 1:
            heads, table = [*heads, "mean"], np.column_stack([table, table.mean(1)])
        lines.append(f"{title + ' %':<12}" + "".join(f"{head:>7}" for head in heads))
        lines += [
            f"{row:<12}" + "".join(f"{value:>7.1f}" for value in values)
            for row, values in zip(rows, table, strict=True)
        ]
    return lines


def require_neighbours(train: Dataset, val: Dataset, ks: Sequence[int]) -> None:
    """Raise ValueError if the data have no labels, different classes or fewer images than the largest k."""
    for data in (train, val):
        require_labels(data, "kNN")
    require_same_classes(train, val)
    if max(ks) > train.num_samples:
        raise ValueError(
            f"--k {max(ks)}: the training data has {train.num_samples:,} images to be neighbours; "
            "give a smaller k"
        )


def score(
    train: FeatureFile, val: FeatureFile, ks: Sequence[int], temperature: float, world: World
) -> Scores:
    """Score the validation samples of `val` by their neighbours in `train`.

    The samples are divided among the ranks; each rank searches the whole of `train`.

    Raises:
        ValueError: The largest k exceeds the number of training samples that could be decoded.
    """
    labels, truth = train.labels(), val.labels()
    assert labels is not None and truth is not None
    num_bank = len(labels) - len(train.record["bad"])
    if max(ks) > num_bank:
        raise ValueError(
            f"--k {max(ks)}: only {num_bank:,} training images could be decoded; give a smaller k"
        )
    good = np.setdiff1d(np.arange(len(truth)), val.record["bad"])
    queries = good[world.rank :: world.size]
    # The chart may show more neighbours than the largest k.
    k = min(max(*ks, NUM_NEIGHBOURS), num_bank)
    neighbours = find_neighbours(val.features()[queries], train.features(), k, world.device)
    num_classes = int(max(labels.max(), truth.max())) + 1
    query_labels, bank_labels = (
        torch.from_numpy(values.astype(np.int64)) for values in (truth[queries], labels)
    )
    counts = count_correct(neighbours, bank_labels, query_labels, num_classes, sorted(set(ks)), temperature)
    sums = torch.tensor(list(counts.values()), device=world.device)
    correct = sum_over_ranks(world, sums).tolist()
    return Scores(dict(zip(counts, correct, strict=True)), len(good), num_bank, queries, neighbours)
