"""Test k-means against sklearn's, and against plain loops with empty clusters, on one to three ranks."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor

from fastpsl.engine.distributed import World, leave_world
from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.tasks.pseudo_labels import k_means as module
from fastpsl.tasks.pseudo_labels.k_means import drawn_rows, k_means, split_biggest
from tests.engine.tiny import one_process
from tests.warm import on_ranks


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
    assert result[0].tolist() == [1025, 2 * 1023, 4 * 1025] and result[1].tolist() == [
        1023,
        2 * 1025,
        4 * 1023,
    ]
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


def in_a_process(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store-{world_size}", rank=rank, world_size=world_size
    )
    result = shared_out(World(rank, world_size, rank, world_size, torch.device("cpu")))
    torch.save(result, f"{folder}/{world_size}-{rank}.pt")
    leave_world()


@pytest.mark.slow
def test_any_number_of_ranks_has_what_one_has(tmp_path: Path) -> None:
    """Results are equal to the bit, because sums are of integers."""
    labels, centroids, distance, _ = shared_out(one_process())
    for world_size in (2, 3):
        on_ranks(in_a_process, (world_size, str(tmp_path)), world_size)
        for rank in range(world_size):
            path = tmp_path / f"{world_size}-{rank}.pt"
            labels_of_ranks, same, as_far, numbers = torch.load(path, weights_only=False)
            assert torch.equal(same, centroids) and torch.equal(labels_of_ranks, labels[numbers])
            assert float(as_far) == pytest.approx(float(distance), rel=1e-9)


def test_a_rank_without_rows(tmp_path: Path) -> None:
    rows = rows_of(30, 4)
    labels, centroids, _ = k_means(rows[:0], rows[:3], 0, one_process())
    assert labels.shape == (0,) and torch.equal(centroids, rows[:3])
