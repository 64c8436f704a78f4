"""The training step of a stage: module, optimiser and scaler, and the evaluation on validation data."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from fastpsl.engine.compile_modes import EAGER, StepChoice, begin_pass, make_runner
from fastpsl.engine.distributed import World, sum_over_ranks
from fastpsl.engine.trunk import Metrics, Trunk
from fastpsl.pipelines.augment import UNFUSED, Augment
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.views import ViewSpec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FP16_INITIAL_SCALE = 65536.0


Loss = Callable[[Trunk, nn.Module, Sequence[Tensor], Batch], tuple[Tensor, Metrics]]
"""The type of `Task.loss`. The task is no submodule, because DDP must not handle its momentum copies."""


class StageModule(nn.Module):
    """A module with blocks, head and loss in one forward, because DDP needs exactly one forward per step."""

    def __init__(self, trunk: Trunk, head: nn.Module, loss: Loss):
        super().__init__()
        self.trunk, self.head = trunk, head
        self._loss = loss

    @override
    def forward(self, inputs: Sequence[Tensor], batch: Batch) -> tuple[Tensor, Metrics]:
        return self._loss(self.trunk, self.head, inputs, batch)

    def learning_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield names and parameters for the stage's optimiser: learning blocks first, then the head."""
        yield from self.trunk.learning.named_parameters(prefix="trunk")
        yield from self.head.named_parameters(prefix="head")


class TrainStep:
    """A training step, with the same code for one rank and many.

    The scaler is used in every precision. Outside fp16 its scale is 1 and changes no value, but it passes
    found_inf to the fused optimiser as a tensor. The optimiser then skips steps with non-finite gradients
    without a transfer to the host.

    Args:
        module: The blocks, the head and the loss.
        optimiser: The optimiser of the module's learning parameters.
        views: The views of each sample.
        precision: "fp32", "bf16" or "fp16".
        world: The ranks.
        augment: The augmentation.
        step: The mode in which blocks run.
        fold_frozen: Whether frozen blocks run as folded copies (`Trunk.fold_frozen`).
        clip_norm: As in `Experiment`.
    """

    def __init__(
        self,
        module: StageModule,
        optimiser: torch.optim.Optimizer,
        views: Sequence[ViewSpec],
        precision: str,
        world: World,
        augment: Augment = UNFUSED,
        step: StepChoice = EAGER,
        fold_frozen: bool = False,
        clip_norm: float | None = None,
    ):
        self.module, self.optimiser, self.views, self.world = module, optimiser, views, world
        self.augment, self.step_choice, self.fold_frozen = augment, step, fold_frozen
        self.clip_norm = clip_norm
        self.dtype = DTYPES[precision]
        scale = FP16_INITIAL_SCALE if precision == "fp16" else 1.0
        self.scaler = torch.amp.GradScaler(world.device.type, init_scale=scale)
        self.num_skipped = torch.zeros((), device=world.device)
        self._totals: Metrics = {}
        optimiser.register_step_pre_hook(self._count_skipped)
        self.forward: nn.Module = module
        if world.size > 1:
            parallel = DistributedDataParallel(module, gradient_as_bucket_view=True)
            # DDP has copied rank 0's buffers to all ranks on construction. Copying them at each forward pass
            # would make the other ranks wait. It is not needed: a training step only reads the running
            # statistics of frozen blocks, which do not change, and rank 0's, which are saved, are its own
            # either way. `evaluate` copies them. (It is set as an attribute, because torch 2.15 renamed the
            # argument.)
            parallel.broadcast_buffers = False
            self.forward = parallel
        module.trunk.runner = make_runner(step.mode)
        if step.mode == "graphed":
            # A CUDA graph's outputs are in its own memory, which its next pass overwrites. Gradients that
            # already exist are added to in place, so they stay outside that memory.
            for _, parameter in module.learning_parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        if fold_frozen:
            module.trunk.fold_frozen(self.dtype)

    def step(self, batches: Sequence[Batch], lr: float) -> Metrics:
        """Make one optimiser step on the mean gradient of `batches`, and return the metrics of `update`."""
        for number, batch in enumerate(batches, start=1):
            self.backward(batch, len(batches), is_last=number == len(batches))
        return self.update(lr)

    def backward(self, batch: Batch, num_batches: int, is_last: bool) -> None:
        """Add the gradient of one of a step's `num_batches` batches. The last one averages over the ranks."""
        with contextlib.nullcontext() if is_last or self.world.size == 1 else self.forward.no_sync():  # type: ignore[operator]
            loss, metrics = self._forward(batch, self.views)
            self.scaler.scale(loss / num_batches).backward()
        for name, (value, count) in metrics.items():
            before = self._totals.get(name, (0.0, 0.0))
            self._totals[name] = (before[0] + value, before[1] + count)

    def update(self, lr: float) -> Metrics:
        """Make the optimiser's step with the learning rate `lr`.

        Returns:
            The metrics of the step's batches, summed, still on the device.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        if self.clip_norm is not None:
            # Clipping keeps non-finite gradients non-finite. The scaler has seen them and skips the step.
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_((p for _, p in self.module.learning_parameters()), self.clip_norm)
        self.scaler.step(self.optimiser)
        if self.dtype == torch.float16:
            self.scaler.update()
        else:
            self.scaler.update(new_scale=1.0)
        self.optimiser.zero_grad(set_to_none=self.step_choice.mode != "graphed")
        totals, self._totals = self._totals, {}
        return totals

    @torch.no_grad()
    def evaluate(
        self, batches: Iterable[Batch], views: Sequence[ViewSpec], stopped: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Evaluate batches in eval mode with rank 0's running statistics.

        Padded samples do not count.

        Args:
            batches: This rank's batches.
            views: Their views.
            stopped: Called before each batch on every rank; returns True to stop.

        Returns:
            The means of the metrics over all ranks, without metrics that no sample counts for; None if it was
            stopped.
        """
        totals: dict[str, Tensor] = {}
        self._take_buffers_of_rank_0()
        self.module.eval()
        for batch in batches:
            if stopped():
                return None
            _, metrics = self._forward(batch, views)
            for name, pair in metrics.items():
                totals[name] = totals.get(name, 0) + torch.stack(pair).double()
        self.module.train()
        return {
            name: float(value / count)
            for name, (value, count) in (
                (n, sum_over_ranks(self.world, t).tolist()) for n, t in totals.items()
            )
            if count
        }

    @torch.no_grad()
    def warm_up(
        self, take: Callable[[Trunk, nn.Module, Sequence[Tensor], Batch], None], batch: Batch
    ) -> None:
        """Pass a batch outside the steps to `take` (`Task.warm_up`), augmented and under autocast."""
        inputs = self.augment.inputs(batch, self.views, self.dtype)
        begin_pass(self.step_choice.mode)
        with self.autocast():
            take(self.module.trunk, self.module.head, inputs, batch)

    def _forward(self, batch: Batch, views: Sequence[ViewSpec]) -> tuple[Tensor, Metrics]:
        inputs = self.augment.inputs(batch, views, self.dtype)
        begin_pass(self.step_choice.mode)
        with self.autocast():
            output: tuple[Tensor, Metrics] = self.forward(inputs, batch)
            return output

    @torch.no_grad()
    def _take_buffers_of_rank_0(self) -> None:
        """Copy rank 0's running statistics to all ranks, which have different ones. Every rank calls it."""
        if self.world.size > 1:
            for buffer in self.module.buffers():
                dist.broadcast(buffer, src=0)

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the step's precision and device."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.world.device.type, dtype=self.dtype if enabled else None, enabled=enabled)

    def _count_skipped(self, optimiser: torch.optim.Optimizer, *_: Any) -> None:
        self.num_skipped += optimiser.found_inf  # type: ignore[attr-defined]  # set by the scaler for fused optimisers

    def state_dict(self) -> dict[str, Any]:
        """Return the state of head, optimiser and scaler. The backbone is saved by its owner."""
        return {
            "head": self.module.head.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.head.load_state_dict(state["head"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
