"""A learning problem, as a recipe hands it over."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from fastpsl.engine.compile_modes import StepChoice, choose_step
from fastpsl.engine.distributed import World
from fastpsl.engine.optim.schedules import Schedule
from fastpsl.engine.optim.sgd_adam import sgd
from fastpsl.engine.options import RunOptions
from fastpsl.engine.plan import Stage
from fastpsl.engine.run import Run, open_both
from fastpsl.engine.trunk import Task, call_if_there, held_out_views, images_per_sample
from fastpsl.models.backbone import Backbone, check_size
from fastpsl.models.fold_batchnorm import check_foldable
from fastpsl.pipelines.augment import choose_augment
from fastpsl.pipelines.data.dataset import Dataset, require_labels, require_same_classes
from fastpsl.pipelines.views import ViewSpec


@dataclass(frozen=True)
class Job:
    """What a recipe hands over: the learning problem. The machine's part is in `Run`.

    science: what must not change on resume besides the options that say so, such as digests of files.
    part: of --data, what is trained on (such as `Subset`); the whole without it. open: training and held-out data, where --data and
    --val are not opened as pictures of a folder or a beton. batchnorm: of blocks that learn: "train"; "eval" by running statistics,
    which stay as they are; "fixed" the same, and scales and shifts do not learn either. clip_norm: of all gradients together, at most.
    """

    task: Task
    backbone: Backbone
    stages: tuple[Stage, ...]
    schedule: Schedule
    optimiser: Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer] = sgd
    science: Mapping[str, Any] = field(default_factory=dict)
    frozen_batchnorm: str = "eval"
    part: Callable[[Dataset], Dataset] | None = None
    open: Callable[[RunOptions], tuple[Dataset, Dataset | None]] = open_both
    batchnorm: Literal["train", "eval", "fixed"] = "train"
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        """ValueError before anything is opened where a level's views cannot be."""
        for stage in self.stages:
            assert 1 <= stage.level <= self.task.num_levels, stage
            self.task.views(stage.level)

    def check(self, run: Run) -> None:
        """ValueError now, and not after two stages, where a stage cannot be trained on this run's data."""
        task = self.task
        if getattr(task, "needs_labels", False):
            require_labels(run.train_data, "this recipe")
            if run.val_data is not None:
                require_labels(run.val_data, "this recipe")
                require_same_classes(run.train_data, run.val_data)
        call_if_there(task, "check_data", run.train_data, run.options.batch_size)
        if hasattr(task, "epoch_order") and run.options.order != "random":
            raise ValueError(
                f"--order {run.options.order}: this recipe's own order comes from its labels; leave it out"
            )
        for stage in self.stages:
            run.loader_batch(images_per_sample(task, stage.level))
            views, others = task.views(stage.level), held_out_views(task, stage.level)
            of_passes: tuple[ViewSpec, ...] = call_if_there(task, "pass_views", stage.level) or ()
            run.check_views((*views, *of_passes), others)
            sides = [view.crop.size_px for view in (*views, *of_passes, *others)]
            check_size(min(sides, default=self.backbone.min_px), self.backbone.min_px)
            choose_augment(run.options.augment, (*views, *others, *of_passes), run.world.device)
            self.choose_step(stage, run.options, run.world)
            if run.options.fold_frozen:
                check_foldable(self.backbone.blocks()[: stage.first_learning - 1], self.frozen_batchnorm)

    def choose_step(self, stage: Stage, options: RunOptions, world: World) -> StepChoice:
        """How the stage's steps run. ValueError where they cannot run as the options ask."""
        if not self.task.views(stage.level):
            if options.step not in ("auto", "eager"):
                raise ValueError(
                    f"--step {options.step}: it needs pictures of one size, and this recipe's have many; leave it out"
                )
            return StepChoice("eager", "pictures of many sizes")
        precision = options.resolved_precision(world.device)
        side_px = max(view.side_px for view in self.task.views(stage.level))
        return choose_step(
            options.step, self.backbone, stage, world.device, precision, side_px,
            num_ranks=world.size, sync_batchnorm=options.sync_batchnorm,
        )  # fmt: skip
