"""Test NT-Xent against SimCLR's double loop, and two processes against one.

Tolerances are 1e-5 of the largest value, because float32 sums have another order.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from fastpsl.tasks.contrastive.nt_xent import nt_xent
from tests.pipelines.memory import printed_by
from tests.warm import results_of_ranks

ROOT = Path(__file__).resolve().parents[2]
T, N = True, False
MASKS = {"all": [T] * 6, "some": [T, N, T, T, N, T], "two": [N, T, N, N, N, T]}


def embeddings(num: int = 6, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return two similar views of various lengths."""
    random = torch.Generator().manual_seed(seed)
    first = 3 * torch.randn(num, width, generator=random)
    return first, 0.5 * first + torch.randn(num, width, generator=random)


def double_loop(first: Tensor, second: Tensor, temperature: float) -> tuple[float, int]:
    """Compute SimCLR's Algorithm 1 for N pairs z[2k-1], z[2k], and the number of z nearest to their pair."""
    z = [row for pair in zip(first.tolist(), second.tolist(), strict=True) for row in pair]

    def s(i: int, j: int) -> float:
        dot = sum(a * b for a, b in zip(z[i], z[j], strict=True))
        return dot / (math.hypot(*z[i]) * math.hypot(*z[j]))

    def one(i: int, j: int) -> float:
        others = [math.exp(s(i, k) / temperature) for k in range(len(z)) if k != i]
        return -math.log(math.exp(s(i, j) / temperature) / sum(others))

    total, right = 0.0, 0
    for k in range(0, len(z), 2):
        total += one(k, k + 1) + one(k + 1, k)
        for i, j in ((k, k + 1), (k + 1, k)):
            right += all(s(i, j) > s(i, n) for n in range(len(z)) if n not in (i, j))
    return total / len(z), right


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("mask", MASKS)
def test_equals_the_papers_double_loop(mask: str, temperature: float) -> None:
    first, second = embeddings()
    valid = torch.tensor(MASKS[mask])
    loss, right = double_loop(first[valid], second[valid], temperature)
    result = nt_xent(first, second, valid, temperature)
    num_anchors = 2 * int(valid.sum())
    assert result.loss.item() == pytest.approx(loss, rel=1e-5)
    assert result.loss_sum.item() == pytest.approx(loss * num_anchors, rel=1e-5)
    assert (result.num_correct.item(), result.num_anchors.item()) == (right, num_anchors)
    assert mask != "all" or 0 < right < num_anchors


def test_no_pair_or_a_single_one_teaches_nothing() -> None:
    for num_valid in (0, 1):
        first, second = (t.requires_grad_() for t in embeddings())
        result = nt_xent(first, second, torch.arange(6) < num_valid, 0.1)
        result.loss.backward()
        assert result.loss == 0 and result.num_anchors == 2 * num_valid
        assert first.grad is not None and not first.grad.any()


def test_a_collapse_is_not_accurate() -> None:
    same = torch.ones(4, 3)
    result = nt_xent(same, same, torch.ones(4, dtype=torch.bool), 0.1)
    assert result.loss.item() == pytest.approx(math.log(7), rel=1e-5) and result.num_correct == 0


def plain_gradients(first: Tensor, second: Tensor, valid: Tensor, temperature: float) -> list[Tensor]:
    """Compute gradients by autograd through the whole matrix, in float64."""
    views = [t.detach().double().requires_grad_() for t in (first, second)]
    z = F.normalize(torch.stack(views, 1)[valid].flatten(0, 1), dim=1)
    logits = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -math.inf)
    F.cross_entropy(logits, torch.arange(len(z)) ^ 1).backward()
    return [t.grad for t in views if t.grad is not None]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("block_rows", [None, 1, 5, 12])
def test_gradients_are_the_whole_matrix_s_for_any_block(mask: str, block_rows: int | None) -> None:
    first, second = (t.requires_grad_() for t in embeddings())
    valid = torch.tensor(MASKS[mask])
    result = nt_xent(first, second, valid, 0.2, block_rows)
    (3 * result.loss).backward()
    assert torch.allclose(result.loss, nt_xent(first, second, valid, 0.2).loss, rtol=1e-6)
    for view, expected in zip((first, second), plain_gradients(first, second, valid, 0.2), strict=True):
        assert view.grad is not None
        assert torch.allclose(
            view.grad.double(), 3 * expected, rtol=0, atol=1e-5 * float(expected.abs().max())
        )
        assert not view.grad[~valid].any()


def test_half_embeddings_and_autocast_are_worked_on_in_float32() -> None:
    valid = torch.tensor(MASKS["some"])
    losses, gradients = [], []
    for autocast in (False, True):
        first, second = (t.bfloat16().requires_grad_() for t in embeddings())
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            result = nt_xent(first, second, valid, 0.1)
            result.loss.backward()
        losses.append(result.loss.detach())
        gradients.append(first.grad)
    whole = nt_xent(first.detach().float(), second.detach().float(), valid, 0.1).loss
    assert losses[0] == losses[1] == whole and losses[0].dtype == torch.float32
    assert gradients[0] is not None and gradients[1] is not None
    assert torch.equal(gradients[0], gradients[1]) and gradients[0].dtype == torch.bfloat16


def test_the_precision_of_other_products_is_left_as_it_was() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        nt_xent(*embeddings(), torch.ones(6, dtype=torch.bool), 0.1)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("temperature", [0, math.nan])
def test_a_temperature_that_is_not_above_0_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature {temperature}: it must be above 0"):
        nt_xent(*embeddings(), torch.ones(6, dtype=torch.bool), temperature)


class Memory(TorchDispatchMode):
    """A dispatch mode that counts the bytes of all living tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[StorageWeakRef, int] = {}
        self.peak = 0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.storages[StorageWeakRef(storage)] = storage.nbytes()
        self.storages = {ref: size for ref, size in self.storages.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self.storages.values()))
        return result


def test_a_batch_of_8192_holds_less_than_256_mib() -> None:
    """The similarities of its 16,384 embeddings would take 1 GiB, and autograd would hold several."""
    with FakeTensorMode(), Memory() as memory:
        first, second = (torch.randn(8192, 128, requires_grad=True) for _ in range(2))
        nt_xent(first, second, torch.ones(8192, dtype=torch.bool), 0.1).loss.backward()
        assert first.grad is not None
    assert 64 * 2**20 < memory.peak < 256 * 2**20, memory.peak / 2**20


BATCH_OF_8192 = """
import torch
from fastpsl.tasks.contrastive.nt_xent import nt_xent
torch.manual_seed(0)
views = [torch.randn(8192, 128, requires_grad=True) for _ in range(2)]
(views[0] @ torch.eye(128)).sum().backward()  # so that libraries have allocated their memory
before = peak_mib()
nt_xent(*views, torch.ones(8192, dtype=torch.bool), 0.1).loss.backward()
print(peak_mib() - before)
"""


@pytest.mark.slow
def test_a_batch_of_8192_runs_in_less_than_400_mib() -> None:
    """This is the memory of the process."""
    (grown_mib,) = printed_by(BATCH_OF_8192)
    assert 64 < grown_mib < 400


# Two ranks have 4 samples each, of which 3 and 1 are valid.
UNEQUAL = torch.tensor([True, True, False, True, False, True, False, False])


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def learned(rank: int, world_size: int) -> dict[str, Tensor]:
    """Return loss and gradients of weights and inputs of this rank's part of eight samples in two views."""
    part = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    inputs = torch.stack(embeddings(8, 6), 0)[:, part].clone().requires_grad_()
    net = network()
    forward = DistributedDataParallel(net) if world_size > 1 else net
    first, second = forward(inputs.flatten(0, 1)).unflatten(0, (2, -1))
    result = nt_xent(first, second, UNEQUAL[part], 0.2, block_rows=3)
    result.loss.backward()
    assert inputs.grad is not None
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {**gradients, "loss": result.loss.detach(), "loss_sum": result.loss_sum, "inputs": inputs.grad}


def test_two_ranks_with_unequal_data_have_the_gradients_of_one(tmp_path: Path) -> None:
    """DDP takes the mean over ranks, so a rank has twice its part of the global mean's gradient."""
    parts = results_of_ranks(learned, 2, tmp_path)
    alone = learned(0, 1)
    inputs = torch.cat([part.pop("inputs") for part in parts], 1) / 2
    loss_sum = sum(part.pop("loss_sum") for part in parts)
    loss = sum(part.pop("loss") for part in parts) / 2
    for value, expected in ((inputs, "inputs"), (loss_sum, "loss_sum"), (loss, "loss")):
        reference = alone.pop(expected)
        assert torch.allclose(value, reference, rtol=0, atol=1e-5 * float(reference.abs().max())), expected
    assert set(alone) == set(parts[0]) and len(alone) == 4
    for name, reference in alone.items():
        assert torch.equal(parts[0][name], parts[1][name])
        bound = 1e-5 * float(reference.abs().max() + 1)
        assert torch.allclose(parts[0][name], reference, rtol=0, atol=bound), name
        assert reference.abs().max() > 0.001 or name.endswith("bias")


def test_what_does_not_count_may_be_anything() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    valid = torch.tensor([True, True, False, True])
    expected = nt_xent(first, second, valid, 0.5).loss
    first[2], second[2] = float("nan"), float("inf")
    first.requires_grad_()
    loss = nt_xent(first, second, valid, 0.5).loss
    loss.backward()
    assert torch.equal(loss, expected) and first.grad is not None and first.grad.isfinite().all()
    assert not first.grad[2].any()
