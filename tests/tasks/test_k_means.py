"""Whitening and k-means, on one and more ranks, compared with scikit-learn and plain loops."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor

from fastpsl.engine.distributed import World
from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.kernels.tf32 import no_tf32
from fastpsl.tasks.pseudo_labels import k_means as module
from fastpsl.tasks.pseudo_labels.k_means import Whitening, drawn_rows, fit_whitening, k_means, split_biggest
from tests.engine.steps import rank_of
from tests.engine.tiny import one_process
from tests.warm import results_of_ranks


def rows_of(num: int, width: int, seed: int = 0) -> Tensor:
    """Return rows of length 1 around a dozen directions."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(12, width, generator=random)
    chosen = torch.randint(0, 12, (num,), generator=random)
    return F.normalize(centres[chosen] + 0.6 * torch.randn(num, width, generator=random))


@pytest.mark.parametrize("num_iterations", [1, 4, 20])
def test_it_is_sklearns(num_iterations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_DISTANCES", 17 * 100)  # blocks of 100 rows, the last one of 37
    rows = rows_of(1037, 8)
    initial = drawn_rows(rows, np.arange(1037), 17, 1037, 3, 5, one_process())
    labels, centroids, distance = k_means(rows, initial, num_iterations, one_process())
    sklearns = KMeans(17, init=initial.numpy(), n_init=1, max_iter=num_iterations, tol=0, algorithm="lloyd")
    sklearns.fit(rows.numpy())
    assert np.array_equal(labels.numpy(), sklearns.labels_)
    np.testing.assert_allclose(centroids.numpy(), sklearns.cluster_centers_, atol=1e-6)
    assert float(distance) == pytest.approx(sklearns.inertia_ / 1037, rel=1e-5)
    assert labels.dtype == torch.long and centroids.dtype == torch.float32


def test_rows_of_float16_pass_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clusters are those of the same values in float32; no block has more numbers than the bound."""
    halves, sizes, to = rows_of(1037, 40).half(), [], Tensor.to

    def noted(rows: Tensor, *where: object) -> Tensor:
        sizes.extend([rows.numel()] * (rows.dtype == torch.float16))
        return to(rows, *where)  # type: ignore[call-overload, no-any-return]

    initial = drawn_rows(halves, np.arange(1037), 7, 1037, 3, 0, one_process())
    expected = k_means(halves.float(), initial, 5, one_process())
    monkeypatch.setattr(module, "_BLOCK_DISTANCES", 4000)
    monkeypatch.setattr(Tensor, "to", noted)
    labels, centroids, distance = k_means(halves, initial, 5, one_process())
    assert sizes == 6 * [*10 * [4000], 37 * 40]
    assert torch.equal(labels, expected[0]) and torch.equal(centroids, expected[1])
    assert centroids.dtype == torch.float32 and float(distance) == pytest.approx(float(expected[2]))


def test_initial_rows_are_drawn_by_seed_and_epoch() -> None:
    rows, numbers = rows_of(50, 4), np.arange(50)
    initial = drawn_rows(rows, numbers, 50, 50, 1, 2, one_process())
    order = [int((rows == row).all(1).nonzero()) for row in initial]
    assert order == sorted(range(50), key=words(Keys(1, 2, numbers), Slot.TASK, 2).tolist().__getitem__)
    again = drawn_rows(rows, numbers, 20, 50, 1, 2, one_process())
    assert torch.equal(again, initial[:20])
    for seed, epoch in ((1, 3), (2, 2)):
        assert not torch.equal(drawn_rows(rows, numbers, 20, 50, seed, epoch, one_process()), again)


def test_samples_without_a_row_are_not_drawn() -> None:
    """Samples 1, 3 and 5 have a row; the other four have none."""
    rows, numbers = rows_of(3, 4), np.array([1, 3, 5])
    initial = drawn_rows(rows, numbers, 3, 7, 0, 0, one_process())
    assert sorted(initial.tolist()) == sorted(rows.tolist())
    with pytest.raises(ValueError, match="--num-clusters 4: only 3 images can be decoded"):
        drawn_rows(rows, numbers, 4, 7, 0, 0, one_process())


def test_the_biggest_is_split_in_two() -> None:
    centroids = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 4.0], [5.0, 5.0, 5.0], [9.0, 9.0, 9.0]])
    result = split_biggest(centroids, [0, 9, 9, 0]) * 1024
    # 0 halves 1 (the lower of two with 9 rows) into 5 and 4; then 3 halves 2.
    assert result[0].tolist() == [1025, 2 * 1023, 4 * 1025]
    assert result[1].tolist() == [1023, 2 * 1025, 4 * 1023]
    assert result[3].tolist() == [5 * 1025, 5 * 1023, 5 * 1025]
    assert result[2].tolist() == [5 * 1023, 5 * 1025, 5 * 1023]
    # 0 takes 4 of 9, then 2 takes 2 of the remaining 5, and 3 half of the lowest cluster with 4.
    result = split_biggest(centroids, [0, 9, 0, 0]) * 1024
    assert result[1].tolist() == pytest.approx([1023**2 / 1024, 2 * 1025**2 / 1024, 4 * 1023**2 / 1024])
    assert result[2].tolist() == pytest.approx(
        [1.0 * 1023 * 1025 / 1024, 2.0 * 1023 * 1025 / 1024, 4 * 1023 * 1025 / 1024]
    )
    assert result[3].tolist() == pytest.approx([1025**2 / 1024, 2 * 1023**2 / 1024, 4 * 1025**2 / 1024])
    assert torch.equal(split_biggest(centroids, [1, 1, 1, 1]), centroids)


def test_clusters_that_run_empty_come_back() -> None:
    rows = rows_of(200, 6)
    initial = torch.cat([rows[:5], torch.full((3, 6), 50.0)])  # three without rows
    labels, centroids, _ = k_means(rows, initial, 10, one_process())
    assert sorted(set(labels.tolist())) == list(range(8))
    means = torch.stack([rows[labels == number].mean(0) for number in range(8)])
    assert (centroids - means).norm(dim=1).max() < 0.3


def test_the_mean_of_the_biggest_is_split_where_others_have_no_rows() -> None:
    rows = rows_of(200, 6)
    initial = torch.cat([rows[:5], torch.full((3, 6), 50.0)])
    nearest = [min(range(8), key=lambda i: float((row - initial[i]).square().sum())) for row in rows]
    counts = [nearest.count(number) for number in range(8)]
    means = torch.zeros(8, 6)
    for number, row in zip(nearest, rows, strict=True):
        means[number] += row / counts[number]
    _, centroids, _ = k_means(rows, initial, 1, one_process())
    torch.testing.assert_close(centroids, split_biggest(means, counts), rtol=0, atol=1e-6)


def test_rows_that_are_all_alike_do_no_harm() -> None:
    for rows in (torch.zeros(9, 4), rows_of(1, 4).expand(9, 4).contiguous()):
        labels, centroids, distance = k_means(rows, rows[:5], 3, one_process())
        assert centroids.isfinite().all() and 0 <= float(distance) < 1e-5
        assert labels.min() >= 0 and labels.max() < 5


def test_rows_longer_than_1_are_our_fault() -> None:
    rows = 2 * rows_of(9, 4)
    with pytest.raises(AssertionError, match="longer than 1"):
        k_means(rows, rows[:2], 1, one_process())


NUM = 611


def shared_out(world: World) -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
    """Give ranks batches of 50 in turn, as a pass does."""
    numbers = np.concatenate([part for i, part in enumerate(np.split(np.arange(NUM), range(50, NUM, 50)))
                              if i % world.size == world.rank])  # fmt: skip
    rows = rows_of(NUM, 8)[numbers]
    initial = drawn_rows(rows, numbers, 40, NUM, 0, 1, world)
    initial = torch.cat([initial, torch.full((2, 8), 9.0)])  # so that there are splits, too
    return *k_means(rows, initial, 6, world), numbers


def of_a_rank(rank: int, world_size: int) -> tuple[Tensor, ...]:
    *found, numbers = shared_out(rank_of(rank, world_size))
    return *found, torch.from_numpy(numbers)  # type: ignore[return-value, arg-type]


@pytest.mark.slow
def test_any_number_of_ranks_has_what_one_has(tmp_path: Path) -> None:
    """Results are equal to the bit, because sums are of integers."""
    labels, centroids, distance, _ = shared_out(one_process())
    for world_size in (2, 3):
        folder = tmp_path / str(world_size)
        folder.mkdir()
        for found in results_of_ranks(of_a_rank, world_size, folder):
            labels_of_ranks, same, as_far, numbers = found
            assert torch.equal(same, centroids) and torch.equal(labels_of_ranks, labels[numbers])
            assert float(as_far) == pytest.approx(float(distance), rel=1e-9)


def test_a_rank_without_rows(tmp_path: Path) -> None:
    rows = rows_of(30, 4)
    labels, centroids, _ = k_means(rows[:0], rows[:3], 0, one_process())
    assert labels.shape == (0,) and torch.equal(centroids, rows[:3])


def whitening_rows_of(num: int, size: int, seed: int = 0) -> Tensor:
    """Return float16 rows that are correlated and far from 0, as features are."""
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(num, size, generator=random) @ torch.randn(size, size, generator=random)
    return (mixed + 20 * torch.rand(size, generator=random)).half()


def equal_up_to_signs(actual: Tensor, expected: np.ndarray, tolerance: float = 2e-3) -> None:
    signs = np.sign((actual.numpy() * expected).sum(0))
    assert (signs != 0).all()
    np.testing.assert_allclose(actual.numpy(), expected * signs, atol=tolerance)


@pytest.mark.parametrize(
    ("num", "size", "width"),
    [(301, 24, 7), (301, 24, 24), (24, 24, 23), (9, 24, 8), (60, 400, 59), (2, 3, 1)],
)
def test_it_is_sklearns_of_whitening(num: int, size: int, width: int) -> None:
    rows = whitening_rows_of(num, size)
    whitening = fit_whitening(rows.split(53), width, one_process())
    pca = PCA(width, whiten=True, svd_solver="full")
    sklearns = pca.fit_transform(rows.double().numpy())
    assert whitening.matrix.shape == (size, width) and whitening.matrix.dtype == torch.float32
    spread = (
        pca.singular_values_[0] / pca.singular_values_[-1]
    )  # the factor by which rounding of the means grows
    equal_up_to_signs(whitening(rows), sklearns, 1e-4 * spread)


def test_whitened_rows_have_no_covariance() -> None:
    rows = whitening_rows_of(500, 12)
    whitened = fit_whitening([rows], 6, one_process())(rows)
    torch.testing.assert_close(whitened.T @ whitened / 499, torch.eye(6), atol=1e-3, rtol=0)
    assert whitened[:0].shape == (0, 6)


def test_it_is_the_same_again_and_draws_nothing_of_the_trainings() -> None:
    rows, before = whitening_rows_of(9, 24), torch.get_rng_state()
    first, again = (fit_whitening([rows], 8, one_process()).matrix for _ in range(2))
    assert torch.equal(first, again) and torch.equal(torch.get_rng_state(), before)


def test_directions_without_variance_are_zeros() -> None:
    """Units are dead or copies of others, rows are fewer than directions or all equal."""
    rows = whitening_rows_of(40, 6).float()
    rows[:, 2], rows[:, 4] = 0.0, rows[:, 1]
    whitened = fit_whitening([rows], 6, one_process())(rows)
    variances = whitened.square().sum(0) / 39
    torch.testing.assert_close(variances, torch.tensor([1.0, 1, 1, 1, 0, 0]), atol=1e-3, rtol=0)
    few = fit_whitening([rows[:3]], 3, one_process())(rows[:3])
    assert (few[:, 2] == 0).all() and (few[:, :2] != 0).any()
    assert (fit_whitening([rows[:1].expand(5, 6)], 4, one_process())(rows) == 0).all()


@pytest.mark.parametrize(("ratio", "is_whitened"), [(1.2e-7, True), (0.8e-7, False)])
def test_the_least_variance_that_counts(ratio: float, is_whitened: bool) -> None:
    """It is a ten-millionth of the largest."""
    rows = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]) * torch.tensor([1, ratio**0.5])
    largest, least = fit_whitening([rows], 2, one_process())(rows).abs().unbind(1)
    expected = torch.full((4,), 0.75**0.5)  # of four rows, whose sample variance has 3 below
    torch.testing.assert_close(largest, expected)
    torch.testing.assert_close(least, expected * is_whitened, rtol=1e-3, atol=0)


def test_more_directions_than_there_are_is_our_fault() -> None:
    for rows, width in (
        (whitening_rows_of(9, 4), 5),
        (whitening_rows_of(3, 9), 4),
        (whitening_rows_of(9, 4), 0),
    ):
        with pytest.raises(AssertionError):
            fit_whitening([rows], width, one_process())


def whitening_of_a_rank(rank: int, world_size: int) -> tuple[Tensor, Tensor]:
    """Fit to a part of 90 or of 11 rows."""
    world = rank_of(rank, world_size)
    fitted = fit_whitening(whitening_rows_of(101, 16).split(90)[rank].split(32), 5, world)
    return fitted.mean, fitted.matrix


def test_two_ranks_have_what_one_has(tmp_path: Path) -> None:
    first, second = (Whitening(*found) for found in results_of_ranks(whitening_of_a_rank, 2, tmp_path))
    assert torch.equal(first.matrix, second.matrix) and torch.equal(first.mean, second.mean)
    rows = whitening_rows_of(101, 16)
    alone = fit_whitening([rows], 5, one_process())
    torch.testing.assert_close(first(rows).abs(), alone(rows).abs(), atol=1e-4, rtol=0)


def test_tf32_is_allowed_again_afterwards() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(KeyError), no_tf32():
            assert torch.get_float32_matmul_precision() == "highest"
            raise KeyError
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
