"""SGD and Adam over the (name, parameter) pairs that learn in a stage."""

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
    """Build SGD with weight decay on all parameters but biases (PSL, section 4.1).

    "No decay for the bias parameters" is read literally: the scales of BatchNorm decay, and their shifts do
    not. The fused version reads the scaler's grad_scale and found_inf as tensors, so that a step with
    non-finite gradients is skipped on the device without synchronisation. fastpsl/engine/optim/apex.py builds
    the same by apex.

    Args:
        named_parameters: Names and parameters.
        momentum: The momentum.
        weight_decay: The weight decay.
        nesterov: Whether to use Nesterov's momentum.
        decay_biases: Whether biases decay too, as in other methods.
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
    """Build torch's fused Adam with weight decay on all parameters, where decay is added to the gradient."""
    parameters = [parameter for _, parameter in named_parameters]
    optimiser = torch.optim.Adam(
        parameters, lr=0.0, betas=betas, weight_decay=weight_decay, fused=True,
        capturable=parameters[0].is_cuda,  # the fused kernels are the same
    )  # fmt: skip
    optimiser._warned_capturable_if_run_uncaptured = True  # the first steps are launched
    return optimiser


def decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float, decay_biases: bool
) -> list[dict[str, Any]]:
    """Return two parameter groups: with weight decay, and biases without."""
    decayed: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        (biases if name.endswith("bias") and not decay_biases else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": biases, "weight_decay": 0.0}]


def with_zero_momenta(optimiser: Optimiser) -> Optimiser:
    """Return the optimiser with zeroed momentum buffers.

    torch's buffers are uninitialised before the first step and would stay so if that step were skipped.
    """
    for group in optimiser.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser
