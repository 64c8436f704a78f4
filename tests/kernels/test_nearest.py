"""Test nearest neighbours and their votes against plain code."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastpsl.kernels.nearest import (
    Neighbours,
    count_correct,
    majority_scores,
    nearest,
    places,
    weighted_scores,
)
from tests.pipelines.memory import printed_by

NUM_CLASSES = 5


def signs(num: int, seed: int, channels: int = 16) -> Tensor:
    """Return rows of ±1 whose norm is a power of two: their cosines are exact, and many are equal."""
    return torch.randint(0, 2, (num, channels), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1


def noise(num: int, seed: int, channels: int = 12) -> Tensor:
    return torch.randn(num, channels, generator=torch.Generator().manual_seed(seed))


def plain(queries: Tensor, bank: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float64 similarities in falling order, equal ones by row."""
    a, b = queries.double().numpy(), bank.double().numpy()
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    similarities = a @ b.T
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarities, order, 1), order


@pytest.mark.parametrize(
    "chunks",
    [
        {},
        {"query_chunk": 1, "bank_chunk": 1},
        {"query_chunk": 7, "bank_chunk": 13, "query_part": 20},
        {"query_chunk": 64, "bank_chunk": 3, "query_part": 64},
    ],
)
def test_equal_similarities_come_in_the_order_of_rows_whatever_the_chunks(chunks: dict[str, Any]) -> None:
    queries, bank = signs(50, 1), signs(101, 2)
    similarities, rows = plain(queries, bank, 17)
    assert (np.diff(similarities) == 0).mean() > 0.5  # because the test is about ties
    neighbours = nearest(queries, bank, 17, **chunks)
    assert np.array_equal(neighbours.rows.numpy(), rows)
    assert np.array_equal(neighbours.similarities.numpy(), similarities)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_neighbours_are_those_of_the_whole_matrix(dtype: torch.dtype) -> None:
    """Cosines have any size and sign, some queries' are all negative, and half is computed in float32."""
    queries, bank = noise(40, 3).to(dtype), (noise(90, 4) * torch.rand(90, 1) * 50).to(dtype)
    bank[:, 0] = 3 * bank[:, 0].abs()
    queries[:5, 1:], queries[:5, 0] = 0, -1
    similarities, rows = plain(queries, bank, 90)
    assert (similarities[:5] < 0).all()
    neighbours = nearest(queries, bank, 90, bank_chunk=32, query_chunk=16)
    assert np.allclose(neighbours.similarities.numpy(), similarities, atol=3e-7)
    by_row = np.take_along_axis(similarities, rows.argsort(1), 1)
    # Rows with nearly equal cosines may swap places.
    assert np.array_equal(np.sort(neighbours.rows.numpy(), 1), np.sort(rows, 1))
    assert np.allclose(np.take_along_axis(by_row, neighbours.rows.numpy(), 1), similarities, atol=6e-7)


def test_memory_maps_serve_as_well(tmp_path: Any) -> None:
    queries, bank = noise(20, 5), noise(70, 6)
    np.save(tmp_path / "bank.npy", bank.numpy())
    neighbours = nearest(queries.numpy(), np.load(tmp_path / "bank.npy", mmap_mode="r"), 9, bank_chunk=16)
    expected = nearest(queries, bank, 9)
    assert torch.equal(neighbours.rows, expected.rows)
    assert np.array_equal(neighbours.rows.numpy(), plain(queries, bank, 9)[1])


def test_rows_that_are_not_finite_are_nobodys_neighbours() -> None:
    queries, bank = noise(10, 7), noise(30, 8)
    expected = plain(queries, bank[2:], 28)[1] + 2
    bank[0], bank[1, 3] = float("nan"), float("inf")
    assert np.array_equal(nearest(queries, bank, 28, bank_chunk=8).rows.numpy(), expected)


def test_the_precision_of_others_is_left_as_it_was() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        nearest(noise(2, 1), noise(3, 2), 1)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("k", [0, 31])
def test_a_k_that_the_bank_has_not_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k {k}: there are 30 features"):
        nearest(noise(2, 1), noise(30, 2), k)


def test_no_queries_have_no_neighbours() -> None:
    assert nearest(noise(0, 1), noise(30, 2), 4).rows.shape == (0, 4)


def labelled(seed: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return queries and a bank of overlapping clusters, with their labels."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(NUM_CLASSES, 12, generator=random)
    bank_labels = torch.randint(0, NUM_CLASSES, (120,), generator=random)
    labels = torch.randint(0, NUM_CLASSES, (60,), generator=random)
    noises = (1.2 * torch.randn(num, 12, generator=random) for num in (60, 120))
    return centres[labels] + next(noises), labels, centres[bank_labels] + next(noises), bank_labels


@pytest.mark.parametrize("temperature", [0.07, 0.1])
def test_weighted_votes_are_those_of_a_plain_loop(temperature: float) -> None:
    queries, truth, bank, labels = labelled()
    similarities, rows = plain(queries, bank, 20)
    expected = np.zeros((60, NUM_CLASSES))
    for query in range(60):
        for similarity, row in zip(similarities[query], rows[query], strict=True):
            expected[query, labels[row]] += np.exp(similarity / temperature)
    neighbours = nearest(queries, bank, 20)
    scores = weighted_scores(neighbours, labels, NUM_CLASSES, 20, temperature)
    shares = (scores / scores.sum(1, keepdim=True)).numpy()
    assert np.allclose(shares, expected / expected.sum(1, keepdims=True), rtol=1e-4, atol=1e-9)
    counted = count_correct(neighbours, labels, truth, NUM_CLASSES, (20,), temperature)
    right = int((expected.argmax(1) == truth.numpy()).sum())
    assert counted["top1_k20"] == right and 24 < right < 60


def test_a_small_temperature_does_not_overflow() -> None:
    neighbours = Neighbours(torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[0, 1, 2]]))
    scores = weighted_scores(neighbours, torch.tensor([1, 0, 0]), 2, 3, temperature=1e-4)
    assert scores.isfinite().all() and int(scores.argmax()) == 1


def majority_by_hand(votes: list[int]) -> int:
    """Return the class with the most votes; of equal classes the one with the nearest vote."""
    most = max(votes.count(label) for label in votes)
    return next(label for label in votes if votes.count(label) == most)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 10, 15, 20])
def test_majority_goes_to_the_nearer_of_equal_classes(k: int) -> None:
    queries, truth, bank, labels = labelled()
    neighbours = nearest(queries, bank, 20)
    predicted = majority_scores(neighbours, labels, NUM_CLASSES, k).argmax(1)
    votes = labels[neighbours.rows[:, :k]].tolist()
    assert predicted.tolist() == [majority_by_hand(row) for row in votes]
    counted = count_correct(neighbours, labels, truth, NUM_CLASSES, (k,), 0.07)
    assert counted[f"top1_k{k}_majority"] == int((predicted == truth).sum())


@pytest.mark.parametrize(
    ("votes", "winner"),
    [
        ([2, 0, 1], 2),
        ([0, 2, 1], 0),
        ([1, 2, 0], 1),
        ([3, 0, 0, 3], 3),  # by the nearest member, and not by the farthest
        ([0, 3, 3, 0], 0),
        ([4, 1, 2, 2, 1], 1),
        ([4, 2, 1, 1, 2], 2),
        ([0, 1, 1, 1, 2, 3, 4, 0, 0], 0),  # by one member, and not by the mean of all
        ([3, 0, 0], 0),  # no tie: two votes outweigh the nearest
    ],
)
def test_the_nearest_neighbour_decides_a_tie(votes: list[int], winner: int) -> None:
    k = len(votes)
    neighbours = Neighbours(torch.linspace(0.9, 0.1, k)[None], torch.arange(k)[None])
    labels = torch.tensor(votes)
    assert int(majority_scores(neighbours, labels, NUM_CLASSES, k).argmax()) == winner
    for truth in range(NUM_CLASSES):
        counted = count_correct(neighbours, labels, torch.tensor([truth]), NUM_CLASSES, (k,), 0.07)
        assert counted[f"top1_k{k}_majority"] == (truth == winner)


@pytest.mark.parametrize("num_classes", [1, 2, 4, 5, 7])
def test_a_class_without_a_vote_is_not_among_the_top_5_of_few_classes(num_classes: int) -> None:
    labels = torch.arange(num_classes)
    found = nearest(torch.eye(num_classes), torch.eye(num_classes), 1)
    counted = count_correct(found, labels, labels.flip(0), num_classes, [1], 0.07)
    assert set(counted.values()) == {num_classes % 2}  # the one vote is right in the middle alone


def test_places_count_classes_ahead() -> None:
    scores = torch.tensor([[0.0, 2.0, 2.0, 1.0, 0.0, 3.0]]).double().expand(6, 6)
    # Class 5 leads. Of the equal 1 and 2 the lower is first. 0 and 4 have no vote and come last.
    assert places(scores, torch.arange(6)).tolist() == [6, 1, 2, 3, 6, 0]


def test_top_5_and_several_k_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, truth, bank, labels = labelled()
    neighbours = nearest(queries, bank, 30)
    scores = weighted_scores(neighbours, labels, NUM_CLASSES, 30, 0.07)
    voted = (scores.gather(1, truth[:, None]) > 0).sum()
    monkeypatch.setattr("fastpsl.kernels.nearest._VOTE_CHUNK", 7)
    counted = count_correct(neighbours, labels, truth, NUM_CLASSES, (1, 30), 0.07)
    assert counted["top5_k30"] == int(voted)  # five classes, so a class with a vote is in the top five
    assert counted["top1_k30"] == int((scores.argmax(1) == truth).sum())
    assert counted["top1_k1"] == counted["top1_k1_majority"] == counted["top5_k1"]
    nothing = Neighbours(neighbours.similarities[:0], neighbours.rows[:0])
    assert count_correct(nothing, labels, truth[:0], NUM_CLASSES, (1, 30), 0.07) == dict.fromkeys(counted, 0)


@pytest.mark.slow
def test_the_matrix_of_similarities_is_never_made() -> None:
    """6,000 x 24,000 similarities would take 550 MiB in float32, and twice that again as keys."""
    script = """
import torch
from fastpsl.kernels.nearest import nearest
torch.set_num_threads(1)
queries, bank = torch.randn(6000, 8), torch.randn(24000, 8)
nearest(queries[:600], bank[:600], 5, bank_chunk=512, query_chunk=256)
before = peak_mib()
nearest(queries, bank, 5, bank_chunk=4096, query_chunk=512)
print(peak_mib() - before)
"""
    (grown,) = printed_by(script)
    assert grown < 300  # 512 x 4,096 x 16 B are 32 MiB, and the allocator holds more
