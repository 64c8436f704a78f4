"""Optimisers over (name, parameter) pairs of what learns in a stage."""

from collections.abc import Iterable

import torch
from torch import nn


def sgd(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    nesterov: bool = False,
    decay_biases: bool = False,
) -> torch.optim.SGD:
    """SGD with weight decay on everything but biases (PSL, section 4.1: "no decay for the bias parameters").

    Read literally: the scales of BatchNorm decay, their shifts do not. `decay_biases`: on everything, as the peers do. Fused: it takes the scaler's grad_scale and
    found_inf as tensors, so a step with non-finite gradients is skipped on the device, without a sync.
    """
    decayed: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        (biases if name.endswith("bias") and not decay_biases else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": biases, "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov, fused=True)
    if momentum:
        # torch makes the buffers uninitialised at the first step; if that one is skipped, they would stay so.
        for parameter in [*decayed, *biases]:
            optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimiser
