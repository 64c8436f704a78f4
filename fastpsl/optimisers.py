"""Optimisers and learning-rate schedules. A schedule is a pure function: (step, num_steps of the stage) → learning rate."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

Schedule = Callable[[int, int], float]


def step_drops(lr: float, intervals: Sequence[int], factor: float = 0.1) -> Schedule:
    """Constant rates that drop by `factor` between `intervals`, which are shares of the stage's length.

    PSL, section 4.1: 60 epochs with "20/20/10/10", so drops after 20, 40 and 50 of 60; the rate restarts at each stage
    (the paper does not say so outright; "for each training stage … we train for 60 epochs" is read so).
    Whole numbers are compared, so a drop falls on the first step of its epoch exactly.
    """
    if not intervals or min(intervals) < 1 or lr <= 0:
        raise ValueError(
            f"lr {lr} with intervals {tuple(intervals)}: the rate and each interval must be above 0"
        )
    total = sum(intervals)
    ends = [sum(intervals[: i + 1]) for i in range(len(intervals) - 1)]

    def rate(step: int, num_steps: int) -> float:
        return lr * factor ** sum(step * total >= end * num_steps for end in ends)

    return rate


def sgd(
    named_parameters: Iterable[tuple[str, nn.Parameter]], momentum: float = 0.9, weight_decay: float = 1e-4
) -> torch.optim.SGD:
    """SGD with weight decay on everything but biases (PSL, section 4.1: "no decay for the bias parameters").

    Read literally: the scales of BatchNorm decay, their shifts do not. Fused: it takes the scaler's grad_scale and
    found_inf as tensors, so a step with non-finite gradients is skipped on the device, without a sync.
    """
    decayed: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        (biases if name.endswith("bias") else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": biases, "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)
    if momentum:
        # torch makes the buffers uninitialised at the first step; if that one is skipped, they would stay so.
        for parameter in [*decayed, *biases]:
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser
