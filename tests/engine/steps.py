"""Steps as the trainer makes them, of a minimal task on the CPU, and what ranks learn by them together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.distributed import World
from fastpsl.engine.optim.optimisers import sgd
from fastpsl.engine.plan import Stage
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.task import Task
from fastpsl.engine.train_step import StageModule, TrainStep
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec
from tests.engine.tiny import TinyNet, one_process

VIEWS = (ViewSpec(RandomResizedCrop(32)),)


class Brightness(Task):
    """A minimal task that regresses the mean of an image. `factor` can make the loss non-finite."""

    factor = 1.0

    num_levels = 3

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        return VIEWS

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1))

    @override
    def loss(self, blocks: nn.Module, head: nn.Module, inputs: Any, batch: Batch) -> tuple[Tensor, Any]:
        loss = (head(blocks(inputs[0]))[:, 0] - inputs[0].mean((1, 2, 3))).square().mean() * self.factor
        return loss, {"loss": (loss.detach(), torch.ones((), device=loss.device))}


def rank_of(rank: int, size: int) -> World:
    """Return the world of a rank on the CPU, on one machine."""
    return World(rank, size, rank, size, torch.device("cpu"))


def make_step(
    stage: Stage, task: Any = None, backbone: Any = None, *, precision: str = "fp32",
    world: World | None = None, optimiser: Any = sgd, batchnorm: Any = "train",
    frozen_batchnorm: str = "eval", **more: Any,
) -> TrainStep:  # fmt: skip
    """Build a step of `Brightness` or another task, on TinyNet or another backbone."""
    world, task, backbone = world or one_process(), task or Brightness(), backbone or TinyNet()
    head = task.stage_head(stage, backbone.channels[stage.last_block - 1]).to(world.device)
    blocks = StageBlocks(backbone.to(world.device), stage, frozen_batchnorm, batchnorm)
    task.start_stage(stage, blocks, head)
    module = StageModule(blocks, head, task)
    views = more.pop("views", task.views(stage.level))
    return TrainStep(module, optimiser(module.learning_parameters()), views, precision, world, **more)


def plain_sgd(parameters: Any) -> torch.optim.Optimizer:
    """Return an optimiser whose step of rate 1 subtracts the gradients."""
    return sgd(parameters, momentum=0.0, weight_decay=0.0)


def at_rate(rate: Any, optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimiser.param_groups:
        group["lr"] = rate
    return optimiser


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_alike(ranks: Sequence[dict[str, Tensor]], alone: dict[str, Tensor], rtol: float = 1e-5) -> None:
    """Check that all ranks have the same values, and those of one process within `rtol` of the largest."""
    for name, value in alone.items():
        for rank in ranks[1:]:
            assert torch.equal(rank[name], ranks[0][name]), name
        bound = rtol * float(value.abs().max() + 1)
        assert torch.allclose(ranks[0][name].double(), value.double(), atol=bound), name
