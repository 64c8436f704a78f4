"""The monitor's figures: kNN and ridge accuracy, deviation and rank, each against plain code."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastpsl.engine import online_probe as online
from fastpsl.engine.online_probe import (
    Features,
    effective_rank,
    feature_std,
    figures,
    probe_line,
    ridge_classes,
)


def noise(num: int, channels: int, seed: int = 0) -> Tensor:
    return torch.randn(num, channels, generator=torch.Generator().manual_seed(seed))


def test_std_is_1_for_even_directions_and_0_for_one() -> None:
    assert feature_std(noise(4000, 64)) == pytest.approx(1, abs=0.02)
    assert feature_std(noise(1, 64).expand(100, 64) * torch.rand(100, 1)) == pytest.approx(0, abs=1e-6)
    rows = noise(50, 8).double().numpy()
    rows /= np.sqrt((rows**2).sum(1, keepdims=True))
    assert feature_std(noise(50, 8)) == pytest.approx(rows.std(0).mean() * 8**0.5)


@pytest.mark.parametrize("shape", [(60, 16), (16, 60)])
def test_the_rank_is_exp_of_the_entropy_of_singular_values(shape: tuple[int, int]) -> None:
    features = noise(*shape) @ torch.diag(torch.linspace(0.1, 2, shape[1]))
    values = np.linalg.svd(features.double().numpy(), compute_uv=False)
    shares = values / values.sum()
    assert effective_rank(features) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)


def test_the_rank_counts_directions() -> None:
    basis = torch.linalg.qr(noise(40, 40))[0]
    assert effective_rank(basis[:, :7].repeat(1, 2)) == pytest.approx(7, rel=1e-4)
    assert effective_rank(noise(1, 9).expand(30, 9)) == pytest.approx(1, rel=1e-3)
    assert effective_rank(torch.zeros(30, 9)) == pytest.approx(1)


def test_ridge_is_the_solution_of_its_normal_equations() -> None:
    """Compares to numpy's least squares on the stacked problem, including a constant channel."""
    features, others = noise(80, 10) * 7 + 3, noise(40, 10, 1) * 7 + 3
    labels = torch.randint(0, 4, (80,), generator=torch.Generator().manual_seed(2))
    features[:, 4] = 5.0
    others[:, 4] = 1e6  # ignored, because the channel is constant in training
    x, queries = features.double().numpy(), others.double().numpy()
    mean, deviation = x.mean(0), x.std(0)
    deviation[4] = np.inf
    x, queries = (x - mean) / deviation, (queries - mean) / deviation
    y = np.eye(4)[labels.numpy()]
    stacked = np.vstack([x, np.sqrt(online.RIDGE * 80) * np.eye(10)])
    targets = np.vstack([y - y.mean(0), np.zeros((10, 4))])
    scores = queries @ np.linalg.lstsq(stacked, targets, rcond=None)[0] + y.mean(0)
    result = ridge_classes(features, labels, others, 4)
    assert result.tolist() == scores.argmax(1).tolist() and len(set(result.tolist())) > 2


def test_ridge_standardises_by_the_deviation_that_has_n_below() -> None:
    """Of few images n - 1 would show.

    Images at 0, 2 and 2 are standardised to x = -√2, 1/√2 and 1/√2 by 4/3 and 2√2/3. The classes' scores are
    2/3 + W x and 1/3 - W x with W = √2/3 / (1 + 1/10). They are equal where x is -1/(6 W), which is at
    4/3 - 1.1/3. With n - 1, it would be at 4/3 - 1.15/3.
    """
    features, labels = torch.tensor([[0.0], [2.0], [2.0]]), torch.tensor([0, 1, 1])
    others = 4 / 3 - 1.1 / 3 + torch.tensor([[-0.01], [0.01]])
    assert ridge_classes(features, labels, others, 2).tolist() == [0, 1]


@pytest.mark.parametrize(("deviation", "is_used"), [(1e-3, True), (1e-5, False)])
def test_a_channel_that_hardly_varies_is_left_out_of_the_ridge(deviation: float, is_used: bool) -> None:
    """Only the last channel tells the classes apart."""
    labels = torch.arange(200) % 2
    features = torch.cat([noise(200, 3), deviation * (2.0 * labels[:, None] - 1)], 1)
    right = (ridge_classes(features, labels, features, 2) == labels).float().mean()
    assert (float(right) == 1) == is_used


def test_neighbours_vote_by_the_usual_weights() -> None:
    """Each of the 20 nearest weighs exp(cosine / 0.07), as in kNN evaluations; the ridge is a tenth."""
    assert online.RIDGE == 0.1
    labels, truth = torch.arange(90) % 3, torch.arange(60) % 3
    features, others = noise(90, 4, 2) + 0.7 * labels[:, None], noise(60, 4, 52) + 0.7 * truth[:, None]
    rows, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (features.numpy(), others.numpy()))
    accuracies = []
    for k, temperature in ((20, 0.07), (20, 0.7), (10, 0.07)):
        right = 0
        for query, label in zip(queries, truth.tolist(), strict=True):
            cosines, votes = rows @ query, [0.0, 0.0, 0.0]
            for row in np.argsort(-cosines)[:k]:
                votes[int(labels[row])] += float(np.exp(cosines[row] / temperature))
            right += votes.index(max(votes)) == label
        accuracies.append(right / 60)
    found = figures(Features(features, labels), Features(others, truth))["knn_accuracy"]
    assert found == pytest.approx(accuracies[0]) and accuracies[0] not in accuracies[1:]


@pytest.mark.parametrize(("cosine", "nearest_wins"), [(0.94, 1.0), (0.96, 0.0)])
def test_the_temperature_decides_between_one_near_and_two_farther(cosine: float, nearest_wins: float) -> None:
    """One of cosine 1 outweighs two of cosine 1 - d if d is above 0.07 ln 2, which is 0.0485."""
    farther = [cosine, (1 - cosine**2) ** 0.5]
    train = Features(torch.tensor([[1.0, 0.0], farther, farther]), torch.tensor([0, 1, 1]))
    found = figures(train, Features(torch.tensor([[1.0, 0.0]]), torch.tensor([0])))
    assert found["knn_accuracy"] == nearest_wins


def test_fewer_images_than_neighbours_all_vote() -> None:
    """A query is next to one image of class 0, but the two of class 1 are hardly farther."""
    train = Features(torch.tensor([[1.0, 0], [0.99, 0.1], [0.99, 0.1]]), torch.tensor([0, 1, 1]))
    found = figures(train, Features(torch.tensor([[1.0, 0.0], [1.0, 0.1]]), torch.tensor([0, 1])))
    assert found["knn_accuracy"] == 0.5


def test_a_look_without_labels_or_with_features_that_are_not_finite() -> None:
    labels = torch.arange(40) % 4
    clear = nn.functional.one_hot(labels, 4).float() + 0.01 * noise(40, 4)
    whole = figures(Features(clear, labels), Features(clear[:12], labels[:12]))
    assert whole["knn_accuracy"] == whole["linear_accuracy"] == 1 and whole["num_val"] == 12
    bare = figures(Features(clear, torch.full((40,), -1)), None)
    assert bare["knn_accuracy"] is None and bare["effective_rank"] == whole["effective_rank"]
    clear[3, 1] = float("inf")
    not_finite = figures(Features(clear, labels), Features(clear[:12], labels[:12]))
    assert all(not_finite[name] is None for name in online.FIGURES)
    assert "not finite" in probe_line(not_finite | {"epoch": 1.0, "stage": "S1", "block": "B3"})


def test_classes_are_those_of_both_parts() -> None:
    features = nn.functional.one_hot(torch.arange(30) % 3, 3).float()
    train, val = Features(features, torch.arange(30) % 3), Features(features, torch.arange(30) % 3 + 2)
    for parts, num_classes in (((train, val), 5), ((val, train), 5), ((train, train), 3)):
        assert figures(*parts)["num_classes"] == num_classes


def test_a_line_for_people_has_chance_and_full_rank() -> None:
    line = {
        "epoch": 2.6, "stage": "S2", "block": "B4", "knn_accuracy": 0.5, "linear_accuracy": 0.625,
        "feature_std": 0.75, "effective_rank": 12.34, "num_train": 480, "num_val": 1160,
        "num_classes": 8, "channels": 16,
    }  # fmt: skip
    signs = "std 0.750 of 1, rank 12.3 of 16"
    assert probe_line(line) == (
        "probe after epoch 2.6 (S2, B4): kNN 50.0 %, linear 62.5 % of 1,160 validation images "
        f"(chance 12.5 %), {signs}"
    )
    beside = "kNN 50.0 % (untrained 37.5 %), linear"
    assert beside in probe_line(line | {"knn_untrained": 0.375})
    assert probe_line(line | {"num_val": 0}) == f"probe after epoch 2.6 (S2, B4): {signs}"
    assert probe_line(line | {"num_train": 14}).endswith("rank 12.3 of 14")
