import math

import pytest
import torch
from torch import nn

from fastpsl.optimisers import sgd, step_drops

STEPS_PER_EPOCH = 7


@pytest.mark.parametrize(
    ("epoch", "drops"),
    [(0, 0), (19, 0), (20, 1), (39, 1), (40, 2), (49, 2), (50, 3), (59, 3)],
)
def test_rate_drops_on_the_first_step_of_its_epoch(epoch: int, drops: int) -> None:
    rate = step_drops(0.01, (20, 20, 10, 10))
    num_steps = 60 * STEPS_PER_EPOCH
    for step in (epoch * STEPS_PER_EPOCH, epoch * STEPS_PER_EPOCH + STEPS_PER_EPOCH - 1):
        assert math.isclose(rate(step, num_steps), 0.01 * 0.1**drops)


def test_intervals_stretch_with_the_stage() -> None:
    rate = step_drops(1.0, (20, 20, 10, 10))
    assert [round(math.log10(rate(step, 180))) for step in (59, 60, 119, 120, 149, 150)] == [
        0,
        -1,
        -1,
        -2,
        -2,
        -3,
    ]


@pytest.mark.parametrize(("lr", "intervals"), [(0.0, (1,)), (0.1, ()), (0.1, (1, 0))])
def test_impossible_schedules_are_refused(lr: float, intervals: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        step_drops(lr, intervals)


def test_biases_do_not_decay() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimiser = sgd(module.named_parameters(), momentum=0.9, weight_decay=0.5)
    for group in optimiser.param_groups:
        group["lr"] = 0.1
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for name, parameter in module.named_parameters():
        expected = before[name] if name.endswith("bias") else before[name] * (1 - 0.1 * 0.5)
        assert torch.allclose(parameter, expected), name


def test_a_skipped_first_step_leaves_no_garbage_behind() -> None:
    """torch makes momentum buffers uninitialised at the first step; fp16 often skips that one while it finds its scale."""
    results = []
    for skipped in (0, 1, 3):
        torch.manual_seed(0)
        module = nn.Linear(200, 300)
        optimiser = sgd(module.named_parameters(), weight_decay=0.0)
        for group in optimiser.param_groups:
            group["lr"] = 0.1
        for step in range(skipped + 2):
            for parameter in module.parameters():
                parameter.grad = torch.full_like(parameter, 1.0 + step - skipped)
            optimiser.grad_scale = None  # type: ignore[attr-defined]  # as the scaler hands them over
            optimiser.found_inf = torch.tensor(float(step < skipped))  # type: ignore[attr-defined]
            optimiser.step()
        results.append(module.weight.detach().clone())
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
