"""Test kNN scores of features on hand-made numbers: few images, the limit of k, and the table."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from fastpsl.evaluation.feature_file import FeatureFile
from fastpsl.evaluation.knn_score import Scores, require_neighbours, score, score_lines
from fastpsl.kernels.nearest import Neighbours
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.sample.betons import sample_paths
from tests.engine.tiny import one_process


def features(path: Path, rows: list[list[float]], labels: list[int], bad: Sequence[int] = ()) -> FeatureFile:
    np.save(path, np.array(rows, np.float32))
    np.save(path.with_name(f"{path.stem}-labels.npy"), np.array(labels, np.int32))
    record = {"labels": f"{path.stem}-labels.npy", "shape": [len(rows), 2], "bad": list(bad)}
    return FeatureFile(path, record)


def test_a_bank_may_be_smaller_than_a_row_of_the_chart(tmp_path: Path) -> None:
    """No image of the bank has the last query's class, so that it is never right."""
    bank = features(tmp_path / "bank.npy", [[1, 0], [0, 1], [1, 1]], [0, 1, 0])
    queries = features(tmp_path / "queries.npy", [[3, 1], [1, 4], [5, 4], [0, 1]], [0, 1, 1, 2])
    scores = score(bank, queries, (1, 3), 0.07, one_process())
    assert (scores.correct["top1_k1"], scores.correct["top1_k3_majority"]) == (2, 1)
    chosen, rows, similarities = scores.shown(seed=0)
    assert rows.shape == similarities.shape == (4, 3)
    assert rows[chosen.argsort()].tolist() == [[0, 2, 1], [1, 2, 0], [2, 0, 1], [1, 2, 0]]


def test_images_that_could_not_be_decoded_are_in_no_count(tmp_path: Path) -> None:
    bank = features(tmp_path / "bank.npy", [[1, 0], [0, 1], [4, 1]], [0, 1, 0])
    queries = features(tmp_path / "queries.npy", [[3, 1], [1, 4], [5, 4], [0, 1]], [0, 1, 0, 1], bad=(1,))
    scores = score(bank, queries, (1,), 0.07, one_process())
    assert (scores.num, scores.num_bank, scores.correct["top1_k1"]) == (3, 3, 3)
    assert scores.queries.tolist() == [0, 2, 3]


def test_all_training_images_may_be_neighbours() -> None:
    with Beton(sample_paths().train_32) as train, Beton(sample_paths().test_32) as val:
        require_neighbours(train, val, (5, 480))
        with pytest.raises(ValueError, match="--k 481: the training data has 480 images"):
            require_neighbours(train, val, (481, 5))


def test_a_table_has_means_over_blocks_and_over_ks() -> None:
    empty = Neighbours(torch.zeros(0, 1), torch.zeros(0, 1, dtype=torch.int64))

    def scored(*counts: int) -> Scores:
        names = "top1_k5", "top5_k5", "top1_k20", "top5_k20", "top1_k5_majority", "top1_k20_majority"
        return Scores(dict(zip(names, counts, strict=True)), 50, 400, np.arange(50), empty)

    scores = [scored(10, 40, 20, 45, 15, 5), scored(30, 41, 25, 46, 35, 15)]
    lines = score_lines(scores, ["B4", "B5"], "both", "resnet18")
    assert lines[0] == "50 validation images, neighbours of 400; B4, B5 of resnet18"
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "weighted % k 5 k 20 mean", "B4 20.0 40.0 30.0", "B5 60.0 50.0 55.0", "mean 40.0 45.0 42.5",
        "majority % k 5 k 20 mean", "B4 30.0 10.0 20.0", "B5 70.0 30.0 50.0", "mean 50.0 20.0 35.0",
    ]  # fmt: skip
    one = score_lines(scores[:1], ["B4"], "majority", "resnet18")
    assert [" ".join(line.split()) for line in one[1:]] == ["majority % k 5 k 20 mean", "B4 30.0 10.0 20.0"]
