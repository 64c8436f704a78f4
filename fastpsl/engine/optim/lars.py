"""LARS as in SimCLR: a learning rate per layer, except for biases and BatchNorm."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override


class LARS(torch.optim.Optimizer):
    """An optimizer with layer-wise adaptive rates (You et al., arXiv 1708.03888) and SimCLR's momentum.

    The update is that of google-research/simclr, lars_optimizer::

        g ← g + weight_decay · w
        trust = eeta · |w| / |g|, or 1 if either norm is 0
        v ← momentum · v + lr · trust · g
        w ← w - v

    The rate is inside the momentum, so the buffer keeps past rates. A group with "adapt": False has trust 1.
    Norms are those of unscaled gradients. With torch's gradient scaler, a step with non-finite gradients
    changes neither weights nor momentum, and the host never waits.

    Args:
        groups: Parameters, all float32, or groups of them such as those of `lars_groups`.
        lr: The learning rate. torch's schedulers can change it.
        momentum: The momentum, 0 or more.
        weight_decay: The weight decay, 0 or more.
        eeta: The trust coefficient, 0 or more.
        adapt: Whether rates adapt to layers.

    Raises:
        ValueError: A parameter is not float32, or a setting is negative.
    """

    # If this is set, torch.amp.GradScaler sets self.grad_scale and self.found_inf around each step.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        groups: Iterable[dict[str, Any]] | Iterable[Tensor],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eeta: float = 0.001,
        adapt: bool = True,
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eeta": eeta}
        super().__init__(groups, {**defaults, "adapt": adapt})

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with momentum buffers from the start, because the first step may be skipped."""
        super().add_param_group(param_group)
        for name in ("lr", "momentum", "weight_decay", "eeta"):
            if self.param_groups[-1][name] < 0:
                raise ValueError(f"LARS with {name} {self.param_groups[-1][name]}: it must be 0 or more")
        for parameter in self.param_groups[-1]["params"]:
            if parameter.dtype != torch.float32:
                raise ValueError(
                    f"LARS got a parameter of {parameter.dtype}: keep weights in torch.float32, autocast "
                    "does the rest"
                )
            self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    @override
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one step with the groups' present rates.

        Args:
            closure: Must be None.
        """
        assert closure is None, "a closure would have to be scaled and checked too"
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._step_group(group, weights)

    def _step_group(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        keep, unscale = self._from_scaler(weights[0].device)
        velocities = [self.state[p]["momentum_buffer"] for p in weights]
        gradients = [p.grad.clone() for p in weights if p.grad is not None]
        # 0 times infinity is not 0. To skip a step, the gradients' bits are therefore multiplied as integers.
        torch._foreach_mul_([g.view(torch.int32) for g in gradients], keep.int())
        torch._foreach_mul_(gradients, unscale)
        if group["weight_decay"]:
            torch._foreach_add_(gradients, weights, alpha=group["weight_decay"])
        rate = group["lr"] * keep
        if group["adapt"]:
            weight_norms, gradient_norms = (
                torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, gradients)
            )
            trust = group["eeta"] * weight_norms / gradient_norms
            trust = torch.where((weight_norms > 0) & (gradient_norms > 0), trust, 1.0)
            torch._foreach_mul_(gradients, (rate * trust).unbind())
        else:
            torch._foreach_mul_(gradients, rate)
        # A skipped step computes v · 1 + 0, then w - v · 0.
        torch._foreach_mul_(velocities, torch.where(keep > 0, group["momentum"], 1.0))
        torch._foreach_add_(velocities, gradients)
        torch._foreach_sub_(weights, torch._foreach_mul(velocities, keep))

    def _from_scaler(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return 1.0 (or 0.0 to skip the step) and the factor that unscales gradients, as device scalars."""
        one = torch.ones((), device=device)
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        keep = one if found_inf is None else (found_inf == 0).float().reshape(())
        return keep, one if scale is None else scale.reciprocal().reshape(())


def lars(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    momentum: float = 0.9,
    weight_decay: float = 1e-6,
    eeta: float = 0.001,
) -> LARS:
    """Build LARS on `lars_groups`, for a trainer that sets the rate of each step."""
    parameters = [parameter for _, parameter in named_parameters]
    return LARS(lars_groups(parameters, weight_decay), lr=0.0, momentum=momentum, eeta=eeta)


def lars_groups(parameters: Iterable[nn.Parameter], weight_decay: float = 1e-6) -> list[dict[str, Any]]:
    """Return SimCLR's two parameter groups.

    Biases and BatchNorm's parameters have no weight decay and no trust ratio. They are recognised by having
    at most one dimension. Weights of convolutions and linear layers have two or more.

    Args:
        parameters: The parameters, such as `model.parameters()`.
        weight_decay: The weight decay of the other parameters.

    Returns:
        Two groups for `LARS`.
    """
    every = list(parameters)
    return [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": weight_decay, "adapt": True},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0, "adapt": False},
    ]
