"""`fastpsl.losses` against lightly, their papers' formulas, and one process with the batch of all ranks."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastpsl import losses
from fastpsl.engine.distributed import place_among_ranks
from tests.threaded_world import results_of_threads
from tests.warm import results_of_ranks

WIDTH = 6


def views(num_views: int, num: int, seed: int = 0) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(num, WIDTH, generator=random).mul(3).requires_grad_() for _ in range(num_views)]


# Each with its number of views, as a function of them and of `valid`.
Called = Callable[..., Tensor]
OURS: dict[str, tuple[int, Callable[[], Called]]] = {
    "NTXent": (2, lambda: losses.NTXent(0.5)),
    "InfoNCE": (2, lambda: losses.InfoNCE(WIDTH, 16, 0.5)),
    "BYOL": (2, losses.BYOL),
    "BarlowTwins": (2, lambda: losses.BarlowTwins(0.1)),
    "VICReg": (2, losses.VICReg),
    "SwAV": (4, lambda: lambda a, b, c, d, valid=None: losses.SwAV(0.5, 0.5)((a, b), (c, d), valid)),
    "DINO": (5, lambda: lambda a, b, c, d, e, valid=None: dino()((a, b, c), (d, e), valid)),
}


def dino() -> losses.DINO:
    loss = losses.DINO(WIDTH, 0.5, 0.3)
    loss.center.copy_(torch.linspace(-1, 1, WIDTH))
    return loss


def normalised_scores(inputs: list[Tensor]) -> list[Tensor]:
    return [F.normalize(each, dim=1) for each in inputs]


def lightlys() -> dict[str, Called]:
    """Return lightly's losses of the same views. The ranks do without lightly, whose import is slow."""
    from lightly import loss

    def queue(first: Tensor, second: Tensor) -> Tensor:
        criterion = loss.NTXentLoss(0.5, memory_bank_size=(16, WIDTH))
        criterion.memory_bank.bank.copy_(losses.InfoNCE(WIDTH, 16).queue)
        value: Tensor = criterion(first, second.detach())
        return value

    def centred(a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor) -> Tensor:
        criterion = loss.DINOLoss(WIDTH, teacher_temp=0.3, student_temp=0.5)
        criterion.center.copy_(torch.linspace(-1, 1, WIDTH))
        value: Tensor = criterion([d.detach(), e.detach()], [a, b, c])
        return value

    return {
        "NTXent": loss.NTXentLoss(0.5),
        "InfoNCE": queue,
        "BYOL": lambda a, b: 2 + 2 * loss.NegativeCosineSimilarity()(a, b.detach()),
        "BarlowTwins": loss.BarlowTwinsLoss(0.1),
        "VICReg": loss.VICRegLoss(),
        "SwAV": lambda a, b, c, d: loss.SwaVLoss(0.5, 3, 0.5)([a, b], [c, d])[0],
        "DINO": centred,
    }


def value_and_gradients(loss: Called, inputs: list[Tensor], valid: Tensor | None = None) -> list[Tensor]:
    """Return the loss and the gradients of the inputs; zeros for those that get none."""
    own = [each.detach().clone().requires_grad_() for each in inputs]
    value = loss(*own) if valid is None else loss(*own, valid=valid)
    value.backward()
    return [value.detach(), *(torch.zeros_like(each) if each.grad is None else each.grad for each in own)]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("num", [3, 7])
def test_a_loss_and_its_gradients_equal_lightlys(name: str, num: int) -> None:
    inputs = views(OURS[name][0], num)
    found = value_and_gradients(OURS[name][1](), inputs)
    expected = value_and_gradients(lightlys()[name], inputs)
    assert found[0].shape == () and found[0].dtype == torch.float32
    for ours, other in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=2e-5, atol=2e-5)


def by_loops(name: str, a: list[list[float]], b: list[list[float]]) -> float:
    """Return a loss of two views by its paper's formula."""
    num, width = len(a), range(len(a[0]))
    if name == "BYOL":
        pairs = ((sum(x * y for x, y in zip(p, z, strict=True)), p, z) for p, z in zip(a, b, strict=True))
        return sum(2 - 2 * dot / (math.hypot(*p) * math.hypot(*z)) for dot, p, z in pairs) / num
    means = [[sum(row[i] for row in view) / num for i in width] for view in (a, b)]
    rows = [[[row[i] - m[i] for i in width] for row in view] for view, m in zip((a, b), means, strict=True)]
    if name == "BarlowTwins":
        deviations = [[math.sqrt(sum(row[i] ** 2 for row in v) / num + 1e-5) for i in width] for v in rows]
        total = 0.0
        for i in width:
            for j in width:
                c = sum(x[i] * y[j] for x, y in zip(*rows, strict=True))
                c /= num * deviations[0][i] * deviations[1][j]
                total += (1 - c) ** 2 if i == j else 0.1 * c**2
        return total
    invariance = sum((x - y) ** 2 for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))
    total = 25 * invariance / (num * len(width))
    for view in rows:
        for i in width:
            for j in width:
                c = sum(row[i] * row[j] for row in view) / (num - 1)
                term = 25 / 2 * max(0.0, 1 - math.sqrt(c + 1e-4)) if i == j else c**2
                total += term / len(width)
    return total


@pytest.mark.parametrize("name", ["BYOL", "BarlowTwins", "VICReg"])
def test_a_loss_equals_its_papers_formula_over_the_valid_samples(name: str) -> None:
    first, second = (each.detach() / 4 for each in views(2, 7))
    valid = torch.tensor([True, False, True, True, False, True, True])
    expected = by_loops(name, first[valid].tolist(), second[valid].tolist())
    first[1], second[4] = torch.nan, torch.inf
    assert OURS[name][1]()(first, second, valid).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", OURS)
def test_a_sample_that_does_not_count_changes_nothing(name: str) -> None:
    inputs = views(OURS[name][0], 7)
    valid = torch.tensor([True, False, True, True, False, True, True])
    expected = value_and_gradients(OURS[name][1](), [each[valid] for each in inputs])
    with torch.no_grad():
        for number, each in enumerate(inputs):
            each[1], each[4] = (torch.nan, torch.inf) if number % 2 else (torch.inf, torch.nan)
    found = value_and_gradients(OURS[name][1](), inputs, valid)
    torch.testing.assert_close(found[0], expected[0])
    for ours, other in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours[valid], other)
        assert not ours[~valid].any()


@pytest.mark.parametrize("name", OURS)
def test_a_batch_without_samples_that_count_has_no_gradient(name: str) -> None:
    for num in (0, 3):
        found = value_and_gradients(
            OURS[name][1](), views(OURS[name][0], num), torch.zeros(num, dtype=torch.bool)
        )
        assert all(torch.isfinite(each).all() for each in found) and not any(each.any() for each in found[1:])


@pytest.mark.parametrize("name", OURS)
def test_autocast_does_not_reach_a_loss(name: str) -> None:
    inputs = [each.detach().bfloat16() for each in views(OURS[name][0], 5)]
    expected = value_and_gradients(OURS[name][1](), [each.float() for each in inputs])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = [each.clone().requires_grad_() for each in inputs]
        value = OURS[name][1]()(*own)
    value.backward()
    found = [value, *(torch.zeros_like(each) if each.grad is None else each.grad for each in own)]
    assert found[0].dtype == torch.float32 and torch.equal(found[0], expected[0])
    for ours, other in zip(found[1:], expected[1:], strict=True):
        assert torch.equal(ours, other.bfloat16())


VALID = torch.tensor([True, True, True, False, True, True, False, False])


def of_share(rank: int, num_ranks: int) -> dict[str, list[Tensor]]:
    """Return each loss and its gradients on this rank's share of 8 samples, without and with `valid`."""
    share = slice(rank * 8 // num_ranks, (rank + 1) * 8 // num_ranks)
    results = {}
    for name, (num_views, made) in OURS.items():
        inputs = [each[share] for each in views(num_views, 8)]
        results[name] = value_and_gradients(made(), inputs)
        results[f"{name} valid"] = value_and_gradients(made(), inputs, VALID[share])
    results["state"] = moved()
    return results


def moved() -> list[Tensor]:
    """Return the queue and the centre after two batches, each rank with its share."""
    queue, center = losses.InfoNCE(WIDTH, 12), losses.DINO(WIDTH)
    rank, num_ranks = place_among_ranks()
    share = slice(rank * 8 // num_ranks, (rank + 1) * 8 // num_ranks)
    for seed in (1, 2):
        first, second, third = (each.detach()[share] for each in views(3, 8, seed))
        queue(first, second, VALID[share])
        center((first, second), (second, third), VALID[share])
    return [queue.queue, queue.slot, center.center]


@pytest.mark.parametrize("kind", ["threads", "gloo"])
def test_the_mean_over_ranks_is_the_loss_of_the_whole_batch(kind: str, tmp_path: Path) -> None:
    (whole,) = results_of_threads(of_share, 1)
    shares = results_of_threads(of_share, 4) if kind == "threads" else results_of_ranks(of_share, 2, tmp_path)
    for name, expected in whole.items():
        each = [share[name] for share in shares]
        if name == "state":
            for rank in each:
                for ours, other in zip(rank, expected, strict=True):
                    torch.testing.assert_close(ours, other)
            continue
        torch.testing.assert_close(torch.stack([rank[0] for rank in each]).mean(), expected[0])
        for number, other in enumerate(expected[1:], 1):
            # Of the mean over ranks, as DDP has it.
            ours = torch.cat([rank[number] for rank in each]) / len(shares)
            torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)


def test_the_queue_is_a_ring_of_keys_and_stays_in_eval_mode() -> None:
    loss = losses.InfoNCE(WIDTH, 5, 0.5)
    start = loss.queue.clone()
    assert torch.allclose(start.norm(dim=1), torch.ones(5))
    batches = [[each.detach() for each in views(2, 3, seed)] for seed in (1, 2)]
    loss.eval()
    loss(*batches[0])
    assert torch.equal(loss.queue, start)
    loss.train()
    expected = list(start)
    for number, (queries, keys) in enumerate(batches):
        logits = [
            [float(F.normalize(q, dim=0) @ k) / 0.5 for k in (F.normalize(key, dim=0), *expected)]
            for q, key in zip(queries, keys, strict=True)
        ]
        mean = sum(math.log(sum(map(math.exp, row))) - row[0] for row in logits) / 3
        assert loss(queries, keys).item() == pytest.approx(mean, rel=1e-5)
        for i, key in enumerate(keys):
            expected[(3 * number + i) % 5] = F.normalize(key, dim=0)
    torch.testing.assert_close(loss.queue, torch.stack(expected))
    assert loss.slot == 1 and set(loss.state_dict()) == {"queue", "slot"}


def test_the_centre_follows_the_teacher_and_stays_in_eval_mode() -> None:
    loss, (student, teacher, other) = losses.DINO(WIDTH, momentum=0.75), views(3, 5)
    loss.eval()((student, other), (teacher,))
    assert not loss.center.any()
    loss.train()((student, other), (teacher, other))
    torch.testing.assert_close(loss.center, torch.cat([teacher, other]).detach().mean(0) / 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["InfoNCE", "DINO"])
def test_a_loss_within_a_model_of_another_dtype_remembers_in_float32(name: str, dtype: torch.dtype) -> None:
    loss: Any = losses.InfoNCE(WIDTH, 16, 0.5) if name == "InfoNCE" else dino()
    same = copy.deepcopy(loss)
    nn.ModuleDict({"loss": same}).to(dtype)
    first, second = (each.detach().to(dtype) for each in views(2, 3))
    inputs = (first, second) if name == "InfoNCE" else ((first, second), (second,))
    for _ in range(2):
        value = same(*inputs)
        assert value.dtype == torch.float32 and torch.equal(value, loss(*inputs))
    for key, buffer in loss.state_dict().items():
        assert torch.equal(same.state_dict()[key], buffer) and same.state_dict()[key].dtype == buffer.dtype


def test_codes_use_the_queue_and_all_prototypes_equally() -> None:
    from lightly.loss.swav_loss import sinkhorn

    large, queued = normalised_scores(views(2, 4)), normalised_scores(views(2, 20, 1))
    loss = losses.SwAV(0.1, 0.05, 3)
    value = loss(large, queued=queued)
    codes = [sinkhorn(torch.cat(each).detach())[:4] for each in zip(large, queued, strict=True)]
    logs = [F.log_softmax(scores / 0.1, 1) for scores in large]
    expected = -(codes[0] * logs[1] + codes[1] * logs[0]).sum(1).mean() / 2
    torch.testing.assert_close(value, expected)
    even = losses.SwAV(num_iterations=50)._codes(large[0], torch.ones(4, dtype=torch.bool), None)
    torch.testing.assert_close(even.sum(1), torch.ones(4))
    torch.testing.assert_close(even.sum(0), torch.full((WIDTH,), 4 / WIDTH), rtol=0.05, atol=0.05)
    assert torch.isfinite(loss([scores * 1e4 for scores in large])).all()  # exp alone would overflow


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: losses.NTXent(0), "temperature 0: it must be above 0"),
        (lambda: losses.NTXent(-1), "temperature -1: it must be above 0"),
        (lambda: losses.InfoNCE(queue_size=0), "queue_size 0"),
        (lambda: losses.SwAV(epsilon=0), "epsilon 0"),
        (lambda: losses.DINO(momentum=1.5), "momentum 1.5: it must be 0 to 1"),
        (lambda: losses.NTXent()(torch.zeros(2, 3), torch.zeros(2, 4)), r"give all in one shape \[B, D\]"),
        (lambda: losses.BYOL()(*[torch.zeros(2, 3, 4)] * 2), r"give all in one shape \[B, D\]"),
        (lambda: losses.VICReg()(torch.zeros(3, 2), torch.zeros(2, 2)), r"\(3, 2\) and \(2, 2\)"),
        (lambda: losses.BYOL()(*views(2, 3), torch.ones(3)), r"torch.float32 \(3,\): give torch.bool"),
        (lambda: losses.InfoNCE(WIDTH, 2)(*views(2, 3)), "queue_size 2 for 3 keys per step: give 3 or more"),
        (lambda: losses.InfoNCE(WIDTH + 1)(*views(2, 3)), "embeddings of width 6: the queue's is 7"),
        (lambda: losses.DINO(WIDTH + 1)(views(2, 3), views(1, 3)), "outputs of width 6: the centre's is 7"),
        (lambda: losses.DINO(WIDTH)(views(1, 3), views(1, 3)), "1 views of the student and 1 of the teacher"),
        (lambda: losses.SwAV()(views(1, 3)), "1 large and 0 small views"),
        (lambda: losses.SwAV()(views(2, 3), queued=views(1, 3)), "queued scores of 1 views"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_loss_trains_in_a_loop_as_the_page_shows() -> None:
    network, criterion = nn.Linear(4, WIDTH), losses.VICReg()
    optimiser = torch.optim.SGD(network.parameters(), 0.01)
    images = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    values = []
    for _ in range(20):
        optimiser.zero_grad()
        value = criterion(network(images), network(images + 0.01))
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < values[0]
