"""IIC's mutual information and its gradients, compared with plain loops, in halves and on two ranks."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastpsl.tasks.pseudo_labels.iic import EPS, mutual_information_loss
from tests.warm import results_of_ranks

COPIES, NUM, SUB_HEADS, CLUSTERS = 3, 6, 2, 4
T, F = True, False
MASKS = {"all": [T] * 6, "some": [T, F, T, T, F, T], "one": [F, T, F, F, F, F]}
ALL = torch.tensor(MASKS["all"])


def logits(num: int = NUM, clusters: int = CLUSTERS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits of a view [B, S, C], and of similar copies [K, B, S, C]."""
    random = torch.Generator().manual_seed(seed)
    first = 3 * torch.randn(num, SUB_HEADS, clusters, generator=random)
    return first, 0.7 * first + torch.randn(COPIES, num, SUB_HEADS, clusters, generator=random)


def shares(num: int = NUM, clusters: int = CLUSTERS, seed: int = 0) -> tuple[Tensor, Tensor]:
    first, others = logits(num, clusters, seed)
    return first.softmax(-1), others.softmax(-1)


def double_loop(pairs: list[tuple[list[float], list[float]]]) -> float:
    """Compute equation 2 with IIC's floor, for pairs of distributions."""
    size = len(pairs[0][0])
    joint = [[sum(z[c] * w[d] for z, w in pairs) / len(pairs) for d in range(size)] for c in range(size)]
    joint = [[(joint[c][d] + joint[d][c]) / 2 for d in range(size)] for c in range(size)]
    total = sum(map(sum, joint))
    joint = [[cell / total for cell in row] for row in joint]
    of_row = [max(sum(row), EPS) for row in joint]
    of_column = [max(sum(row[d] for row in joint), EPS) for d in range(size)]
    loss = 0.0
    for c in range(size):
        for d in range(size):
            cell = max(joint[c][d], EPS)
            loss -= cell * (math.log(cell) - math.log(of_row[c]) - math.log(of_column[d]))
    return loss


def pairs_of(
    first: Tensor, others: Tensor, valid: Tensor, sub_head: int
) -> list[tuple[list[float], list[float]]]:
    return [
        (first[i, sub_head].tolist(), copy[i, sub_head].tolist())
        for copy in others
        for i in range(len(first))
        if valid[i]
    ]


def test_the_floor_is_the_papers() -> None:
    assert pytest.approx(2.2e-16, rel=0.02) == EPS


@pytest.mark.parametrize("mask", MASKS)
def test_equals_the_double_loop_over_all_pairs(mask: str) -> None:
    first, others = shares()
    valid = torch.tensor(MASKS[mask])
    losses = mutual_information_loss(first, others, valid)
    assert losses.dtype == torch.float32 and losses.shape == (SUB_HEADS,)
    for sub_head in range(SUB_HEADS):
        expected = double_loop(pairs_of(first, others, valid, sub_head))
        assert losses[sub_head].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert mask == "one" or (losses < -1e-3).all()


def test_best_and_worst_are_known() -> None:
    """Even clusters that both views agree on give -log C. A collapse and clusters by chance give 0."""
    sure = torch.eye(CLUSTERS)[torch.arange(8) % CLUSTERS][:, None]
    valid = torch.ones(8, dtype=torch.bool)
    assert mutual_information_loss(sure, sure[None], valid).item() == pytest.approx(-math.log(CLUSTERS))
    one = torch.eye(CLUSTERS)[torch.zeros(8, dtype=torch.long)][:, None]
    assert mutual_information_loss(one, one[None], valid).item() == pytest.approx(0, abs=1e-6)
    pairs = torch.cartesian_prod(torch.arange(CLUSTERS), torch.arange(CLUSTERS))
    first, other = (torch.eye(CLUSTERS)[pairs[:, i]][:, None] for i in (0, 1))
    valid = torch.ones(16, dtype=torch.bool)
    assert mutual_information_loss(first, other[None], valid).item() == pytest.approx(0, abs=1e-6)


def plain_gradients(first: Tensor, others: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Compute gradients by autograd in float64, pair by pair."""
    leaves = first.double().requires_grad_(), others.double().requires_grad_()
    z, copies = (leaf.softmax(-1) for leaf in leaves)
    total = torch.zeros((), dtype=torch.float64)
    for sub_head in range(SUB_HEADS):
        pairs = [(z[i], copy[i]) for copy in copies for i in range(len(z)) if valid[i]]
        joint = sum(torch.outer(one[sub_head], other[sub_head]) for one, other in pairs)
        assert isinstance(joint, Tensor)
        joint = (joint + joint.T) / (2 * joint.sum())
        parts = joint.clamp(min=EPS), joint.sum(1, keepdim=True), joint.sum(0, keepdim=True)
        total = total - (parts[0] * (parts[0].log() - parts[1].log() - parts[2].log())).sum()
    total.backward()
    assert leaves[0].grad is not None and leaves[1].grad is not None
    return leaves[0].grad, leaves[1].grad


@pytest.mark.parametrize("mask", ["all", "some"])
def test_gradients_are_those_of_the_plain_formula(mask: str) -> None:
    valid = torch.tensor(MASKS[mask])
    leaves = tuple(leaf.requires_grad_() for leaf in logits())
    mutual_information_loss(leaves[0].softmax(-1), leaves[1].softmax(-1), valid).sum().backward()
    for leaf, expected in zip(leaves, plain_gradients(*logits(), valid), strict=True):
        assert leaf.grad is not None
        assert torch.allclose(leaf.grad.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert leaves[0].grad is not None and not leaves[0].grad[~valid].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_and_autocast_are_worked_on_in_float32(dtype: torch.dtype) -> None:
    """Views are sure of one cluster: in half precision the floor would be 0 and the loss not finite."""
    first, others = (tensor.to(dtype) for tensor in shares())
    first[0], others[:, 0] = torch.eye(CLUSTERS, dtype=dtype)[1], torch.eye(CLUSTERS, dtype=dtype)[1]
    first[1:, :, 3], others[:, 1:, :, 3] = 0, 0  # an empty cluster
    whole = mutual_information_loss(first.float(), others.float(), ALL)
    for autocast in (False, True):
        leaf = first.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            losses = mutual_information_loss(leaf, others, ALL)
            losses.sum().backward()
        assert torch.equal(losses, whole) and losses.dtype == torch.float32 and losses.isfinite().all()
        assert leaf.grad is not None and leaf.grad.dtype == dtype and leaf.grad.isfinite().all()


@pytest.mark.parametrize("num", [0, 4])
def test_no_pair_teaches_nothing(num: int) -> None:
    first, others = (tensor.requires_grad_() for tensor in shares(num))
    losses = mutual_information_loss(first, others, torch.zeros(num, dtype=torch.bool))
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([0.0] * SUB_HEADS, abs=1e-12)
    assert first.grad is not None and not first.grad.any()


def test_what_does_not_count_may_be_anything() -> None:
    first, others = shares()
    valid = torch.tensor(MASKS["some"])
    expected = mutual_information_loss(first, others, valid)
    first[1], others[:, 4] = torch.nan, torch.inf
    first.requires_grad_()
    losses = mutual_information_loss(first, others, valid)
    losses.sum().backward()
    assert torch.equal(losses, expected) and first.grad is not None and first.grad.isfinite().all()


# Ranks have 4 samples each, of which 3 and 1 are valid; then 4 and none.
UNEQUAL = {"3 and 1": [T, T, F, T, F, T, F, F], "4 and 0": [T] * 4 + [F] * 4}


def learned(mask: str, rank: int, world_size: int) -> dict[str, Tensor]:
    """Return losses and weight gradients of this rank's part of eight samples in four views."""
    part = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(CLUSTERS, 8), nn.Tanh(), nn.Linear(8, CLUSTERS))
    forward = DistributedDataParallel(net) if world_size > 1 else net
    views = torch.cat([logits(8)[0][None], logits(8)[1]])[:, part]
    z = forward(3 * views).softmax(-1)
    losses = mutual_information_loss(z[0], z[1:], torch.tensor(UNEQUAL[mask])[part])
    losses.mean().backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {**gradients, "losses": losses.detach()}


def of_each_mask(rank: int, world_size: int) -> dict[str, dict[str, Tensor]]:
    return {mask: learned(mask, rank, world_size) for mask in UNEQUAL}


def test_two_ranks_with_unequal_data_have_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    first, second = results_of_ranks(of_each_mask, 2, tmp_path)
    for mask in UNEQUAL:
        alone = learned(mask, 0, 1)
        assert set(alone) == set(first[mask]) and len(alone) == 5
        for name, value in alone.items():
            assert torch.equal(first[mask][name], second[mask][name]), name
            largest = float(value.abs().max())
            assert largest > 1e-6, name
            assert torch.allclose(first[mask][name], value, rtol=0, atol=1e-5 * largest + 1e-8), name
