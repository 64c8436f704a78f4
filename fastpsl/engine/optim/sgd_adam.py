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


def require_apex(device: torch.device) -> None:
    """Check that FusedSGD can run on a device."""
    if device.type != "cuda":
        raise ValueError(f"--apex on {device.type}: apex's FusedSGD needs CUDA; leave --apex out")
    try:
        from apex.optimizers import FusedSGD

        # This raises RuntimeError if apex was built without its CUDA extensions.
        FusedSGD([torch.zeros(1)], lr=0.0)
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"--apex needs apex.optimizers.FusedSGD, and there is none ({error}): build NVIDIA's apex from "
            "https://github.com/NVIDIA/apex with APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install "
            "--no-build-isolation . (PyPI's apex is another project: pip uninstall apex), or leave --apex "
            "out"
        ) from error


def fused_sgd(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    nesterov: bool = False,
    decay_biases: bool = False,
) -> torch.optim.Optimizer:
    """Build SGD as `sgd_adam.sgd` does, by apex. `require_apex` checks beforehand that it can run."""
    from apex.optimizers import FusedSGD

    class ScaledFusedSGD(FusedSGD):
        """A FusedSGD that reads the scaler's grad_scale and found_inf as tensors, as torch's fused SGD does.

        Otherwise the scaler would read found_inf on the host and synchronise at each step.
        """

        _step_supports_amp_scaling = True
        # FusedSGD passes its rate to the kernels as a number (`TrainStep`).
        needs_rate_on_host = True
        # FusedSGD's own method has no argument `set_to_none`.
        zero_grad = torch.optim.Optimizer.zero_grad

        def step(self, closure: Any = None) -> Any:
            found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
            # apex's kernels do nothing if this int32 [1] on the device is not 0.
            skips = self._dummy_overflow_buf
            skips.zero_() if found_inf is None else skips.copy_(found_inf)
            if grad_scale is not None:
                parameters = (p for group in self.param_groups for p in group["params"])
                torch._foreach_div_([p.grad for p in parameters if p.grad is not None], grad_scale)
            return super().step(closure)

    groups = decay_groups(named_parameters, weight_decay, decay_biases)
    return with_zero_momenta(ScaledFusedSGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov))
