"""SGD by NVIDIA apex's FusedSGD, which updates all weights of a group in one CUDA launch."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fastpsl.engine.optim.sgd_adam import decay_groups, with_zero_momenta


def require_apex(device: torch.device) -> None:
    """Check that FusedSGD can run on a device.

    Raises:
        ValueError: It cannot run. The message names a remedy.
    """
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
