"""SGD, Adam and LARS over the (name, parameter) pairs that learn in a stage."""

import warnings
from collections.abc import Iterable
from functools import cache
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.kernels.fused import tried_out
from fastpsl.pipelines.decoders.memory import to_device

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
    non-finite gradients is skipped on the device without synchronisation. `fused_sgd` builds the same by
    apex.

    Args:
        named_parameters: Names and parameters.
        momentum: The momentum.
        weight_decay: The weight decay.
        nesterov: Whether to use Nesterov's momentum.
        decay_biases: Whether biases decay too, as in other methods.

    Returns:
        The optimizer, for a trainer that sets the rate of each step.
    """
    groups = decay_groups(named_parameters, weight_decay, decay_biases)
    optimiser = torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov, fused=True)
    return with_zero_momenta(optimiser)


def adam(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> torch.optim.Adam | torch.optim.AdamW:
    """Build torch's fused Adam, or AdamW, with weight decay on all parameters.

    Args:
        named_parameters: Names and parameters.
        betas: The decay rates of both moments, in [0, 1).
        weight_decay: The weight decay, 0 or more.
        decoupled: Whether decay shrinks the weights, as AdamW's; otherwise it is added to the gradient.

    Returns:
        The optimizer, for a trainer that sets the rate of each step.
    """
    parameters = [parameter for _, parameter in named_parameters]
    optimiser = (torch.optim.AdamW if decoupled else torch.optim.Adam)(
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
    """Build SGD as `sgd` does, by apex. `require_apex` checks beforehand that it can run."""
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


class LARS(torch.optim.Optimizer):
    """An optimizer with layer-wise adaptive rates (You et al., arXiv 1708.03888) and SimCLR's momentum.

    The update is that of google-research/simclr, lars_optimizer::

        g ← g + weight_decay · w
        trust = eeta · |w| / |g|, or 1 if either norm is 0
        v ← momentum · v + lr · trust · g
        w ← w - v

    The rate is inside the momentum, so the buffer keeps past rates. A group with "adapt": False has trust 1.
    Norms are those of unscaled gradients. With torch's gradient scaler, a step with non-finite gradients
    changes neither weights nor momentum, and the host never waits. On CUDA two passes of Triton's kernels do
    it, where they work.

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
        # The division of weights among the kernels' programs, by the weights' layouts; None where the kernels
        # do not support a layout.
        self._divisions: dict[tuple[tuple[int, ...], ...], tuple[Tensor, ...] | None] = {}
        super().__init__(groups, {**defaults, "adapt": adapt})

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore an optimizer that was copied or unpickled."""
        super().__setstate__(state)
        self._divisions = {}

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
                kernels = _lars_kernels(weights[0].device)
                division = None if kernels is None else self._divided(kernels, weights)
                if kernels is None or division is None:
                    self._step_group(group, weights)
                else:
                    self._step_by_kernels(kernels, division, group, weights)

    def _divided(self, kernels: ModuleType, weights: list[Tensor]) -> tuple[Tensor, ...] | None:
        """Return the division of weights among the kernels' programs; None if they have gaps in memory."""
        layout = tuple((*weight.shape, *weight.stride()) for weight in weights)
        if layout not in self._divisions:
            parts = kernels.divided([weight.numel() for weight in weights])
            of_device = tuple(to_device(part, weights[0].device) for part in parts)
            self._divisions[layout] = of_device if all(map(_is_dense, weights)) else None
        return self._divisions[layout]

    def _step_by_kernels(
        self, kernels: ModuleType, division: tuple[Tensor, ...], group: dict[str, Any], weights: list[Tensor]
    ) -> None:
        gradients, velocities = list[Tensor](), list[Tensor]()
        for weight in weights:
            gradient, velocity = weight.grad, self.state[weight]["momentum_buffer"]
            assert gradient is not None
            if not _is_in_order(gradient, weight):
                gradient = torch.empty_like(weight).copy_(gradient)
            if not _is_in_order(velocity, weight):  # of a checkpoint of another memory format
                velocity = self.state[weight]["momentum_buffer"] = torch.empty_like(weight).copy_(velocity)
            gradients.append(gradient)
            velocities.append(velocity)
        lr, scale = group["lr"], getattr(self, "grad_scale", None)
        if not isinstance(lr, Tensor):
            lr = torch.full((), lr, device=weights[0].device)
        decay = group["weight_decay"]
        rates = None
        if group["adapt"]:
            rates = kernels.rates_of(weights, gradients, *division, lr, scale, decay, group["eeta"])
        found_inf = getattr(self, "found_inf", None)
        kernels.update(
            weights, gradients, velocities, *division, rates, lr, scale, found_inf, decay, group["momentum"]
        )

    def _step_group(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.is_cpu and found_inf:  # read at no cost
            return
        keep, unscale = self._from_scaler(weights[0].device)
        velocities = [self.state[p]["momentum_buffer"] for p in weights]
        gradients = [p.grad.clone() for p in weights if p.grad is not None]
        if keep is not None:
            # 0 times infinity is not 0. To skip a step, the gradients' bits are multiplied as integers.
            torch._foreach_mul_([g.view(torch.int32) for g in gradients], keep.int())
        if unscale is not None:
            torch._foreach_mul_(gradients, unscale)
        if group["weight_decay"]:
            torch._foreach_add_(gradients, weights, alpha=group["weight_decay"])
        rate = group["lr"] if keep is None else group["lr"] * keep
        if group["adapt"]:
            both = weights, gradients
            weight_norms, gradient_norms = (torch.stack(torch._foreach_norm(each)) for each in both)
            trust = group["eeta"] * weight_norms / gradient_norms
            trust = torch.where((weight_norms > 0) & (gradient_norms > 0), trust, 1.0)
            torch._foreach_mul_(gradients, (rate * trust).unbind())
        else:
            torch._foreach_mul_(gradients, rate)
        # A skipped step computes v · 1 + 0, then w - v · 0.
        momentum = group["momentum"] if keep is None else torch.where(keep > 0, group["momentum"], 1.0)
        torch._foreach_mul_(velocities, momentum)
        torch._foreach_add_(velocities, gradients)
        torch._foreach_sub_(weights, velocities if keep is None else torch._foreach_mul(velocities, keep))

    def _from_scaler(self, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """Return 1.0 (or 0.0 to skip the step) and the factor that unscales gradients, as device scalars.

        On a CPU, where each costs a pass over the weights, None stands for 1.
        """
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if device.type == "cpu":
            return None, None if scale is None or scale == 1 else scale.reciprocal().reshape(())
        one = torch.ones((), device=device)
        keep = one if found_inf is None else (found_inf == 0).float().reshape(())
        return keep, one if scale is None else scale.reciprocal().reshape(())


def _is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor has no gaps in its memory, and no value twice."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _is_in_order(tensor: Tensor, weight: Tensor) -> bool:
    """Return whether a tensor has its values in the order of the weight's memory."""
    ours, theirs = tensor.stride(), weight.stride()
    # An axis of one has any stride: cuDNN's gradients of 1 x 1 convolutions have others.
    return ours == theirs or all(
        one == other for one, other, size in zip(ours, theirs, weight.shape, strict=True) if size != 1
    )


@cache
def _lars_kernels(device: torch.device) -> ModuleType | None:
    """Return the module of the kernels. Where a GPU has none, say why, once."""
    if device.type != "cuda":
        return None

    def run(module: ModuleType) -> None:
        tensors, rate = [torch.zeros(3, device=device)], torch.zeros((), device=device)
        one = torch.arange(2, dtype=torch.int32, device=device)  # `divided` of three values, without a copy
        division = one[:1], one, torch.full((1,), 3, device=device)
        rates = module.rates_of(tensors, tensors, *division, rate, None, 0.0, 0.0)
        momenta = [torch.zeros(3, device=device)]
        module.update(tensors, momenta, momenta, *division, rates, rate, None, None, 0.0, 0.0)

    kernels, why_not = tried_out("lars", run)
    if kernels is None:
        warnings.warn(
            f"LARS takes torch's operations, half a millisecond a step slower: {why_not}", stacklevel=4
        )
    return kernels


def lars(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    momentum: float = 0.9,
    weight_decay: float = 1e-6,
    eeta: float = 0.001,
) -> LARS:
    """Build LARS on `lars_groups`, for a trainer that sets the rate of each step.

    Args:
        named_parameters: Names and parameters.
        momentum: The momentum, 0 or more.
        weight_decay: The decay of weights, 0 or more; biases and BatchNorms have none.
        eeta: The trust coefficient: the relative change of a layer's norm by a step of rate 1.

    Returns:
        The optimizer.

    Raises:
        ValueError: A value is below 0, or a parameter is not float32.
    """
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
