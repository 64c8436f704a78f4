"""Test whitening against sklearn's PCA, on one rank and two, and for rows without variance."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.decomposition import PCA
from torch import Tensor

from fastpsl.engine.distributed import World, leave_world
from fastpsl.kernels.tf32 import no_tf32
from fastpsl.tasks.pseudo_labels.k_means import fit_whitening
from tests.engine.tiny import one_process
from tests.warm import on_ranks


def rows_of(num: int, size: int, seed: int = 0) -> Tensor:
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
def test_it_is_sklearns(num: int, size: int, width: int) -> None:
    rows = rows_of(num, size)
    whitening = fit_whitening(rows.split(53), width, one_process())
    pca = PCA(width, whiten=True, svd_solver="full")
    sklearns = pca.fit_transform(rows.double().numpy())
    assert whitening.matrix.shape == (size, width) and whitening.matrix.dtype == torch.float32
    spread = (
        pca.singular_values_[0] / pca.singular_values_[-1]
    )  # the factor by which rounding of the means grows
    equal_up_to_signs(whitening(rows), sklearns, 1e-4 * spread)


def test_whitened_rows_have_no_covariance() -> None:
    rows = rows_of(500, 12)
    whitened = fit_whitening([rows], 6, one_process())(rows)
    torch.testing.assert_close(whitened.T @ whitened / 499, torch.eye(6), atol=1e-3, rtol=0)
    assert whitened[:0].shape == (0, 6)


def test_it_is_the_same_again_and_draws_nothing_of_the_trainings() -> None:
    rows, before = rows_of(9, 24), torch.get_rng_state()
    first, again = (fit_whitening([rows], 8, one_process()).matrix for _ in range(2))
    assert torch.equal(first, again) and torch.equal(torch.get_rng_state(), before)


def test_directions_without_variance_are_zeros() -> None:
    """Units are dead or copies of others, rows are fewer than directions or all equal."""
    rows = rows_of(40, 6).float()
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
    for rows, width in ((rows_of(9, 4), 5), (rows_of(3, 9), 4), (rows_of(9, 4), 0)):
        with pytest.raises(AssertionError):
            fit_whitening([rows], width, one_process())


def in_a_process(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    world = World(rank, world_size, rank, world_size, torch.device("cpu"))
    part = rows_of(101, 16).split(90)[rank]  # parts of 90 and 11 rows
    torch.save(fit_whitening(part.split(32), 5, world), f"{folder}/{rank}.pt")
    leave_world()


def test_two_ranks_have_what_one_has(tmp_path: Path) -> None:
    on_ranks(in_a_process, (2, str(tmp_path)), 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert torch.equal(first.matrix, second.matrix) and torch.equal(first.mean, second.mean)
    rows = rows_of(101, 16)
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
