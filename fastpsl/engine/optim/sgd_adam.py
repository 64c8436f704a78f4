"""Optimisers over (name, parameter) pairs of what learns in a stage."""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn

Optimiser = TypeVar("Optimiser", bound=torch.optim.Optimizer)


def sgd(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    nesterov: bool = False,
    decay_biases: bool = False,
) -> torch.optim.SGD:
    """SGD with weight decay on everything but biases (PSL, section 4.1: "no decay for the bias parameters").

    Read literally: the scales of BatchNorm decay, their shifts do not. `decay_biases`: on everything, as the peers do.
    Fused: it takes the scaler's grad_scale and found_inf as tensors, so a step with non-finite gradients is skipped on
    the device, without a sync. fastpsl/engine/optim/apex.py has the same by apex.
    """
    groups = decay_groups(named_parameters, weight_decay, decay_biases)
    return with_zero_momenta(
        torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov, fused=True)
    )


def adam(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> torch.optim.Adam:
    """Adam, its weight decay on everything (as torch's: added to the gradient). Fused, as `sgd`."""
    parameters = [parameter for _, parameter in named_parameters]
    return torch.optim.Adam(parameters, lr=0.0, betas=betas, weight_decay=weight_decay, fused=True)


def decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float, decay_biases: bool
) -> list[dict[str, Any]]:
    """Two parameter groups: what decays, and biases that do not."""
    decayed: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        (biases if name.endswith("bias") and not decay_biases else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": biases, "weight_decay": 0.0}]


def with_zero_momenta(optimiser: Optimiser) -> Optimiser:
    """The optimiser with its momentum buffers made: torch's are uninitialised at the first step, and would stay so were it skipped."""
    for group in optimiser.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser
