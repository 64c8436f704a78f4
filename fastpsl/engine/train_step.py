"""The training step of a stage: module, optimiser and scaler, and the evaluation on validation data."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from fastpsl.engine import step_modes
from fastpsl.engine.distributed import World, sum_over_ranks, take_tensors_of_rank_0
from fastpsl.engine.stage_blocks import Metrics, StageBlocks, StepMetrics
from fastpsl.kernels.autocast import autocast
from fastpsl.models.foreign_weights import first_three
from fastpsl.pipelines.loader.augment import TORCH, Augment
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FP16_INITIAL_SCALE = 65536.0  # torch's default


class StepTask(Protocol):
    """The part of a `Task` that a step calls."""

    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]: ...

    def after_step(self, extras: Sequence[Mapping[str, Tensor]]) -> None: ...

    def step_state(self) -> Iterable[Tensor]: ...

    def kept_state(self) -> Iterable[Tensor]: ...

    def variant(self, epoch: int) -> int: ...

    def batch_tensors(self, epoch: int, step: int, num_images: int) -> Mapping[str, Tensor]: ...


class StageModule(nn.Module):
    """A module with blocks, head and loss in one forward, because DDP needs exactly one forward per step."""

    def __init__(self, blocks: StageBlocks, head: nn.Module, task: StepTask):
        super().__init__()
        self.blocks, self.head = blocks, head
        self.task = task  # no submodule, because DDP must not handle its momentum copies

    @override
    def forward(self, inputs: Sequence[Tensor], batch: Batch) -> tuple[Tensor, Metrics]:
        return self.task.loss(self.blocks, self.head, inputs, batch)

    def learning_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield names and parameters for the stage's optimiser: learning blocks first, then the head."""
        yield from self.blocks.learning.named_parameters(prefix="blocks")
        yield from self.head.named_parameters(prefix="head")

    def written_buffers(self) -> Iterator[Tensor]:
        """Yield the buffers that a training forward pass writes, such as running statistics."""
        for part in self.modules():
            if part.training:
                yield from part.buffers(recurse=False)


class TrainStep:
    """A training step, with the same code for one rank and many.

    A step is a function of tensors, so that it can be captured once and replayed (`StepGraphs`). A step with
    gradients that are not finite is skipped, and changes nothing.

    Args:
        module: The blocks, the head and the task.
        optimiser: The optimiser of the module's learning parameters.
        views: The views of each sample.
        precision: "fp32", "bf16" or "fp16".
        world: The ranks.
        augment: The augmentation.
        choices: How steps run.
        clip_norm: As in `Experiment`.
    """

    def __init__(
        self,
        module: StageModule,
        optimiser: torch.optim.Optimizer,
        views: Sequence[ViewSpec],
        precision: str,
        world: World,
        augment: Augment = TORCH,
        choices: step_modes.StageChoices = step_modes.PLAIN,
        clip_norm: float | None = None,
    ):
        self.module, self.optimiser, self.views, self.world = module, optimiser, views, world
        self.augment, self.clip_norm = augment, clip_norm
        self.step_choice, self.graph_choice, self.fold_choice, self.launched = choices
        self.dtype = DTYPES[precision]
        self.scaler = self._new_scaler()
        self.num_skipped = torch.zeros((), device=world.device)
        self.lr = torch.zeros((), device=world.device)  # a captured step would keep a number
        self._lr_on_host = 0.0  # for checkpoints, which need not ask the device
        self._bind_rate()
        self._skipped = step_modes.SkippedStep(self.num_skipped)
        # A hook, because the scaler takes its found_inf away again at the end of the optimiser's step.
        optimiser.register_step_pre_hook(self._skipped)
        self._state = step_modes.StepState([*module.written_buffers(), *module.task.kept_state()])
        self._graphs = step_modes.StepGraphs(choices.graph, world) if choices.graph.captures else None
        self.forward: nn.Module = module
        self._is_first = True
        if world.size > 1:
            # torch wants DDP made on a side stream where its steps are captured (its notes on CUDA graphs).
            with step_modes.beside(world.device) if choices.graph.captures else contextlib.nullcontext():
                # Gradients lie in the buckets that are exchanged, so they are not copied there.
                parallel = DistributedDataParallel(module, gradient_as_bucket_view=True)
            # DDP has copied rank 0's buffers to all ranks on construction. Copying them at each forward pass
            # would make the other ranks wait. It is not needed: a training step only reads the running
            # statistics of frozen blocks, which do not change, and rank 0's, which are saved, are its own
            # either way. `evaluate` copies them. (It is set as an attribute, because torch 2.15 renamed the
            # argument.)
            parallel.broadcast_buffers = False
            # After its first step DDP sorts gradients into other buckets, by their arrival. Their places
            # decide how a sum over three ranks or more is rounded, so a resumed run's first step would have
            # other bits. On a GPU bits differ between runs anyway, and the order hides the exchange.
            if world.device.type == "cpu":
                parallel.reducer._push_all_rebuilt_params()
                parallel.reducer._rebuild_buckets()
            self.forward = parallel
        module.blocks.runner = step_modes.make_runner(choices.step.mode)
        if choices.fold.mode == "on":
            module.blocks.fold_frozen(self.dtype)

    def step(self, batches: Iterable[Batch], lr: float, num_batches: int | None = None) -> StepMetrics:
        """Make one optimiser step on the mean gradient of `batches`.

        Args:
            batches: The batches, each of which is taken when the one before is computed or copied.
            lr: The learning rate.
            num_batches: The number of batches; None to count a list of them.

        Returns:
            The metrics of the batches, summed.
        """
        if num_batches is None:
            batches = list(batches)
            num_batches = len(batches)
        self._set_rate(lr)
        prepared = (self.prepared(batch).of_step() for batch in batches)
        if self._graphs is None:
            return self.compute(prepared, num_batches)
        return self._graphs.step(prepared, num_batches, self)

    @property
    def num_first_steps(self) -> int:
        """The number of a stage's steps until the first one that is a replay."""
        return 0 if self._graphs is None else self._graphs.num_launched + 1

    def release(self) -> None:
        """Free the captured steps and their memory. Later steps are captured anew."""
        if self._graphs is not None:
            self._graphs = step_modes.StepGraphs(self.graph_choice, self.world)

    def compute(self, batches: Iterable[Batch], num_batches: int) -> StepMetrics:
        """Launch a whole step, in which no value is read on the host."""
        # Before the forward pass, which writes while nobody knows yet whether the step will be skipped.
        self._state.keep()
        first, self._is_first = self._is_first, False
        totals: dict[str, tuple[Tensor, Tensor]] = {}
        extras, number = list[Mapping[str, Tensor]](), 0
        for number, batch in enumerate(batches, start=1):
            # Gradients of accumulated batches are exchanged once, with those of the last one. The forward
            # pass is inside, too, because there DDP prepares the exchange.
            shares = number == num_batches or self.world.size == 1
            with contextlib.nullcontext() if shares else self.forward.no_sync():  # type: ignore[operator]
                loss, metrics = self._forward(batch, self.views)
                self.scaler.scale(loss / num_batches).backward()
            extras.append(batch.extra)
            for name, (value, count) in metrics.items():
                before = totals.get(name)
                totals[name] = (value, count) if before is None else (before[0] + value, before[1] + count)
        assert number == num_batches, (number, num_batches)
        if first and self.world.size > 1:
            self._require_gradients()
        if self.clip_norm is not None:
            # Clipping keeps non-finite gradients non-finite. The scaler has seen them and skips the step.
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_((p for _, p in self.module.learning_parameters()), self.clip_norm)
        # In every precision: it gives found_inf to the fused optimiser as a tensor. So that skips the step by
        # itself, and the host does not wait to look.
        self.scaler.step(self.optimiser)
        if self.dtype == torch.float16:
            self.scaler.update()
        else:
            self.scaler.update(new_scale=1.0)  # a scale of 1 changes no value, and it would grow
        self.optimiser.zero_grad(set_to_none=True)
        is_skipped = self._skipped.take()
        self.module.task.after_step([{**extra, step_modes.IS_SKIPPED: is_skipped} for extra in extras])
        self._state.restore_if(is_skipped)  # after `after_step`, whose writes it takes back, too
        # The count goes with the metrics, so that the host never asks for it.
        pairs = [*totals.values(), (self.num_skipped, torch.ones_like(self.num_skipped))]
        return StepMetrics(tuple(totals), torch.stack([torch.stack(pair).float() for pair in pairs]))

    def _require_gradients(self) -> None:
        """Raise ValueError if DDP would miss a gradient in the next step."""
        parameters = self.module.learning_parameters()
        names = [name for name, each in parameters if each.requires_grad and each.grad is None]
        if names:
            raise ValueError(
                f"{len(names)} of the stage's parameters get no gradient in a step ({first_three(names)}), "
                "and several ranks wait for that of each: train on one, or use these layers in forward()"
            )

    def written(self) -> Iterator[Tensor]:
        """Yield all tensors that a step writes and a later one reads."""
        yield from self.module.parameters()
        yield from self.module.buffers()
        yield from self.module.task.step_state()
        for state in self.optimiser.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))
        yield from (getattr(self.scaler, name) for name in ("_scale", "_growth_tracker"))
        yield self.num_skipped

    def abandon(self) -> None:
        """Forget what half of a step has left on the host, after its capture failed.

        Further steps are launched, in the mode that is the fastest for them.
        """
        if self.launched != self.step_choice:
            self.step_choice, self.module.blocks.runner = (
                self.launched,
                step_modes.make_runner(self.launched.mode),
            )
        self.optimiser.zero_grad(set_to_none=True)
        # A new one, because the old one may have unscaled gradients, and refuses to do so twice in a step.
        state, self.scaler = self.scaler.state_dict(), self._new_scaler()
        self.scaler.load_state_dict(state)
        for name in ("grad_scale", "found_inf"):  # the scaler's, which it deletes after a whole step
            vars(self.optimiser).pop(name, None)

    def _new_scaler(self) -> torch.amp.GradScaler:
        scale = FP16_INITIAL_SCALE if self.dtype == torch.float16 else 1.0
        return torch.amp.GradScaler(self.world.device.type, init_scale=scale)

    def _bind_rate(self) -> None:
        """Make the optimiser read its rate from `lr`, which lies on the device.

        apex's optimiser reads a number.
        """
        if not getattr(self.optimiser, "needs_rate_on_host", False):
            for group in self.optimiser.param_groups:
                group["lr"] = self.lr
        else:
            assert not self.graph_choice.captures, "a captured step would keep its rate"

    def _set_rate(self, lr: float) -> None:
        self._lr_on_host = lr
        self.lr.fill_(lr)
        if getattr(self.optimiser, "needs_rate_on_host", False):
            for group in self.optimiser.param_groups:
                group["lr"] = lr

    def prepared(self, batch: Batch) -> Batch:
        """Return the batch with what the task adds to it."""
        task, num_images = self.module.task, len(batch.indices) * self.world.size
        extra = task.batch_tensors(batch.epoch, batch.step, num_images)
        return batch.with_extra(task.variant(batch.epoch), extra)

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
        # In training, each rank has statistics of its own batches, and a checkpoint has rank 0's.
        take_tensors_of_rank_0(self.module.buffers(), self.world)
        self.module.eval()
        for batch in batches:
            if stopped():
                return None  # in eval mode, because the run ends here
            _, metrics = self._forward(self.prepared(batch).of_step(), views)
            for name, pair in metrics.items():
                totals[name] = totals.get(name, 0) + torch.stack(pair).double()
        self.module.train()
        # In one order on all ranks, because all have the same task and equally many batches.
        pairs = {name: sum_over_ranks(self.world, total).tolist() for name, total in totals.items()}
        return {name: float(value / count) for name, (value, count) in pairs.items() if count}

    @torch.no_grad()
    def warm_up(
        self, take: Callable[[StageBlocks, nn.Module, Sequence[Tensor], Batch], None], batch: Batch
    ) -> None:
        """Pass a batch outside the steps to `take` (`Task.warm_up`), augmented and under autocast."""
        batch = self.prepared(batch)
        inputs = self.augment.inputs(batch, self.views, self.dtype)
        with self.autocast():
            take(self.module.blocks, self.module.head, inputs, batch)

    def _forward(self, batch: Batch, views: Sequence[ViewSpec]) -> tuple[Tensor, Metrics]:
        inputs = self.augment.inputs(batch, views, self.dtype)
        with self.autocast():
            output: tuple[Tensor, Metrics] = self.forward(inputs, batch)
            return output

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return the autocast context of the step's precision and device."""
        return autocast(self.world.device, self.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of head, optimiser and scaler. The backbone is saved by its owner."""
        optimiser = self.optimiser.state_dict()
        # The host's own number, so that the device is not asked for its tensor.
        groups = [{**group, "lr": self._lr_on_host} for group in optimiser["param_groups"]]
        optimiser, scaler = {**optimiser, "param_groups": groups}, self.scaler.state_dict()
        return {"head": self.module.head.state_dict(), "optimiser": optimiser, "scaler": scaler}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.release()  # a captured step writes to tensors that are replaced here
        self.module.head.load_state_dict(state["head"])
        self.optimiser.load_state_dict(state["optimiser"])
        self._lr_on_host = float(self.optimiser.param_groups[0]["lr"])
        for group in self.optimiser.param_groups:
            if "capturable" in group:  # a checkpoint may come from another device
                group["capturable"] = group["params"][0].is_cuda
        self._bind_rate()  # loading has replaced it
        self.scaler.load_state_dict(state["scaler"])
