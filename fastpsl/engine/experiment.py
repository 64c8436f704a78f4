"""The learning problem that a recipe defines, and the training step of each of its stages."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from fastpsl.console.progress import operation
from fastpsl.engine.blockwise import Blockwise
from fastpsl.engine.distributed import World
from fastpsl.engine.gpu import set_cudnn_benchmark, torch_seed
from fastpsl.engine.optim.optimisers import sgd
from fastpsl.engine.optim.schedules import Schedule
from fastpsl.engine.options import TrainingOptions
from fastpsl.engine.plan import Stage
from fastpsl.engine.run import OpenData, Run, RunData, open_both
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.step_modes import (
    StageChoices,
    StepChoice,
    choose_fold,
    choose_graph,
    choose_step,
)
from fastpsl.engine.task import Task
from fastpsl.engine.time_left import Costs, layer_costs, timed_costs
from fastpsl.engine.train_step import DTYPES, StageModule, TrainStep
from fastpsl.kernels.autocast import autocast
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.models.backbone import Backbone, check_size
from fastpsl.models.names import BACKBONES, is_timm
from fastpsl.models.own_backbone import OwnBackbone
from fastpsl.pipelines.interface.dataset import Dataset, all_labelled, require_labels, require_same_classes
from fastpsl.pipelines.loader.augment import choose_augment
from fastpsl.pipelines.views import Input, ViewSpec

# The most images of a pass by which blocks are timed on a CPU. Of larger images there are fewer, with as many
# pixels in all.
_TIMED_IMAGES, _TIMED_SIDE_PX = 64, 64


@dataclass(frozen=True)
class Experiment:
    """A learning problem, as a recipe defines it. `Run` holds what depends on the machine.

    Attributes:
        task: The task.
        backbone: The backbone to train.
        stages: The stages, in order.
        schedule: The learning rate over the steps.
        optimiser: Builds the optimizer from named parameters.
        science: What must not change on resume besides options, such as digests of files.
        part: Selects the part of --data to train on (such as `Subset`); None for all of it.
        open: Opens the training and validation data, if --data and --val are not images.
        batchnorm: The BatchNorms of learning blocks: "train"; "eval", which normalises by fixed running
            statistics; or "fixed", which is "eval" with scales and shifts that do not learn.
        clip_norm: The largest norm of all gradients together, or None.
        beside: Called on every rank after a complete training, for what is trained beside it. It returns
            False after a signal.
        finish: Called on rank 0 after a complete run. It returns lines to print.
        input: The input of the weights that the backbone began with, whose mean and std the views get; None
            for the task's own.

    Raises:
        ValueError: A stage's views cannot be built.
    """

    task: Task
    backbone: Backbone
    stages: tuple[Stage, ...]
    schedule: Schedule
    optimiser: Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer] = sgd
    science: Mapping[str, Any] = field(default_factory=dict)
    part: Callable[[Dataset], Dataset] | None = None
    open: OpenData = open_both
    batchnorm: Literal["train", "eval", "fixed"] = "train"
    clip_norm: float | None = None
    beside: Callable[[Run], bool] = lambda run: True
    finish: Callable[[Run], Sequence[str]] = lambda run: ()
    input: Input | None = None

    def __post_init__(self) -> None:
        """Divide the task for a plan in parts, and build all views, before any data is opened."""
        (parts,) = {stage.parts for stage in self.stages if stage.parts} or [()]
        if parts and not isinstance(self.task, Blockwise):
            object.__setattr__(self, "task", Blockwise(self.task, parts, self.backbone.channels))
        for stage in self.stages:
            assert 1 <= stage.level <= self.task.num_levels, stage
            with _of_stage(stage):
                self.views(stage)

    def views(self, stage: Stage) -> tuple[ViewSpec, ...]:
        """Return the task's views of each sample in a stage, at the stage's size."""
        views = self.task.views(stage.level)
        if stage.crop_scale is not None and not any(isinstance(v.crop, RandomResizedCrop) for v in views):
            raise ValueError(
                f"--crop-scale {stage.crop_scale:g}: this recipe has no random resized crops; leave it out"
            )
        return self.in_stage(stage, views)

    def val_views(self, stage: Stage) -> tuple[ViewSpec, ...]:
        """Return the task's views of the validation data in a stage, at the stage's size."""
        return self.in_stage(stage, self.task.val_views(stage.level))

    def pass_views(self, stage: Stage) -> tuple[ViewSpec, ...]:
        """Return the views of the task's passes over the data in a stage, at the stage's size."""
        return self.in_stage(stage, self.task.pass_views(stage.level))

    def in_stage(self, stage: Stage, views: Sequence[ViewSpec]) -> tuple[ViewSpec, ...]:
        """Return views of the task as a stage shows them: at its size, with its scale of random crops.

        Their mean and standard deviation are those that the backbone's `input` expects.
        """
        if stage.size_px is not None and views:
            if self.task.one_size:
                raise ValueError(f"--size-px with several values: {self.task.one_size}; give one value")
            share = stage.size_px / self.task.views(stage.level)[0].crop.size_px
            views = [view.resized(share) for view in views]
        found = list[ViewSpec]()
        for view in views:
            crop = view.crop
            if stage.crop_scale is not None and isinstance(crop, RandomResizedCrop):
                view = replace(view, crop=replace(crop, scale=(stage.crop_scale, crop.scale[1])))
            found.append(view if self.input is None else view.seen_by(self.input))
        return tuple(found)

    def input_record(self, stage: Stage) -> dict[str, Any]:
        """Return the input of the network in a stage, as checkpoints store it."""
        record = self.task.input_record(stage.level)
        if stage.size_px is not None:
            record |= {"size_px": stage.size_px}
        if self.input is not None and record["channels"] == self.input.channels:
            record |= {"mean": list(self.input.mean), "std": list(self.input.std)}
        return record

    def inputs_per_image(self) -> dict[str, int]:
        """Return the task's inputs per image, by stage, for the stages in which they are more than one."""
        numbers = {stage.name: self.task.inputs_per_image(stage.level) for stage in self.stages}
        return {name: number for name, number in numbers.items() if number > 1}

    def open_data(self, options: TrainingOptions, world: World) -> RunData:
        """Open the data and `check` it.

        Raises:
            ValueError: The data cannot be opened or does not fit.
        """
        data = RunData(options, world, self.open, self.part)
        try:
            self.check(data)
        except BaseException:
            data.close()
            raise
        return data

    def check(self, data: RunData) -> None:
        """Check before the first stage that every stage can be trained on this data.

        Raises:
            ValueError: A stage cannot be trained on it.
        """
        task, options, world = self.task, data.options, data.world
        if task.needs_labels:
            require_labels(data.train, "this recipe")
            if data.val is not None:
                require_labels(data.val, "this recipe")
        if data.val is not None and (task.needs_labels or _is_probed(data)):
            require_same_classes(data.train, data.val, options.data, options.val)
        if getattr(options, "freeze_when", "never") == "knn" and (why_not := why_no_knn(data)):
            raise ValueError(f"--freeze-when knn: {why_not}; use --freeze-when similarity, or leave it out")
        for batch_size in dict.fromkeys(map(options.batch_of, self.stages)):
            task.check_data(data.train, batch_size)
        if task.has_own_order and options.order != "random":
            raise ValueError(
                f"--order {options.order}: this recipe's own order comes from its labels; leave it out"
            )
        data.check_batch()
        if world.size > 1 and isinstance(self.backbone, OwnBackbone):
            learning = (range(stage.first_learning, stage.last_block + 1) for stage in self.stages)
            self.backbone.require_gradients({number for numbers in learning for number in numbers})
        for stage in self.stages:
            views, others, pass_views = self.views(stage), self.val_views(stage), self.pass_views(stage)
            with _of_stage(stage):
                data.check_views((*views, *pass_views), others)
                read = [view for view in (*views, *pass_views, *others) if view.follows is None]
                sides = [view.crop.size_px for view in read]
                check_size(min(sides, default=self.backbone.min_px), self.backbone.min_px)
            choose_augment(options.augment_backend, (*views, *others, *pass_views), world.device)
            self.choose_step(stage, options, world)

    def choose_step(self, stage: Stage, options: TrainingOptions, world: World) -> StageChoices:
        """Choose how the stage's steps run.

        Raises:
            ValueError: The steps cannot run as the options require.
        """
        why_not = self._why_not_captured(stage, options, world)
        graph = choose_graph(options.graph, world.device, world.size, why_not)
        precision, batchnorm = options.resolved_precision(world.device), _frozen_batchnorm(options)
        frozen = self.backbone.blocks()[: stage.first_learning - 1]
        fold = choose_fold(options.fold_frozen, frozen, batchnorm, precision, captured=graph.captures)
        if not self.views(stage):
            if options.compile not in ("auto", "off"):
                raise ValueError(
                    f"--compile {options.compile}: it needs images of one size, and this recipe's have "
                    "many; leave it out"
                )
            step = StepChoice("off", "images of many sizes")
            return StageChoices(step, graph, fold, step)
        side_px = max(view.side_px for view in self.views(stage) if view.follows is None)
        choose = partial(
            choose_step, options.compile, self.backbone, stage, world.device, precision, side_px,
            sync_batchnorm=options.sync_batchnorm,
        )  # fmt: skip
        step = launched = choose(captured=graph.captures)
        if graph.captures:
            launched = choose(captured=False)
        return StageChoices(step, graph, fold, launched)

    def _why_not_captured(self, stage: Stage, options: TrainingOptions, world: World) -> str:
        """Return why the stage's steps are no function of tensors of fixed sizes; empty if they are."""
        if not self.task.fixed_sizes:
            return "images of many sizes"
        if world.size > 1 and not self.task.fixed_exchange:
            return "its ranks send each other other numbers of images in each step"
        if not self.views(stage):
            return "its batches are not views of images"
        if getattr(options, "apex", False):
            return "apex's optimiser takes its rate from the host"
        why = self.backbone.why_uncapturable or self.task.why_uncapturable
        return why if options.graph == "auto" else ""


@contextlib.contextmanager
def _of_stage(stage: Stage) -> Iterator[None]:
    """Name the stage in an error about views of its own size."""
    try:
        yield
    except ValueError as error:
        if stage.size_px is None:
            raise
        raise ValueError(f"{stage.name}: {error}") from error


def _frozen_batchnorm(options: TrainingOptions) -> str:
    """Return how BatchNorms of frozen blocks normalise, "eval" or "train"."""
    return getattr(options, "frozen_batchnorm", "eval")


def why_no_knn(data: RunData) -> str:
    """Return why features cannot be scored by the classes of the images; empty if they can."""
    if not all_labelled(data.train):
        return "the training images have no classes"
    if data.train.num_classes < 2:
        return "all images have one class"
    if data.val is None:
        return "there are no validation images"
    if not all_labelled(data.val):
        return "the validation images have no classes"
    try:
        require_same_classes(data.train, data.val)
    except ValueError:
        return "the validation images have other classes than the training images"
    return ""


def _is_probed(data: RunData) -> bool:
    """Return whether --probe-every asks for a comparison of validation and training images by classes."""
    return bool(getattr(data.options, "probe_every", 0)) and all(
        each is not None and all_labelled(each) for each in (data.train, data.val)
    )


def place_backbone(experiment: Experiment, options: TrainingOptions, world: World) -> None:
    """Move the backbone to the device, in channels-last memory and with SyncBatchNorm if requested."""
    if options.sync_batchnorm:
        experiment.backbone.synchronise_batchnorms()
    experiment.backbone.to(world.device).to(memory_format=torch.channels_last)


def block_costs(experiment: Experiment, stage: Stage, data: RunData) -> Costs:
    """Return the costs of the backbone's blocks: on a CPU seconds of passes, else numbers of layers.

    Layers also serve for a network that somebody else wrote, which may count its calls or refuse to be
    copied.
    """
    blocks, device, name = experiment.backbone.blocks(), data.world.device, experiment.backbone.name
    views = [view for view in experiment.views(stage) if view.follows is None]
    if device.type != "cpu" or not views or not (name in BACKBONES or is_timm(name)):
        return layer_costs(blocks)
    side_px, precision = max(view.side_px for view in views), data.options.resolved_precision(device)
    num_channels = Input.from_dict(experiment.input_record(stage)).num_channels
    # As many images as a pass of the stage has, because with few of them reading the weights costs most. A
    # larger pass is cut to one that is quick.
    size = data.options.rank_batch(data.world.size, data.options.batch_of(stage))
    num = max(2, min(size, _TIMED_IMAGES, _TIMED_IMAGES * _TIMED_SIDE_PX**2 // side_px**2))
    images = torch.zeros(num, num_channels, side_px, side_px)
    images = images.contiguous(memory_format=torch.channels_last)
    with operation("timing the network's blocks"):
        return timed_costs(blocks, images, partial(autocast, device, DTYPES[precision]))


def make_train_step(experiment: Experiment, number: int, options: TrainingOptions, world: World) -> TrainStep:
    """Build a stage's module, optimiser and augmentation for training.

    The head's initial weights depend on the seed and the stage alone.
    """
    task, stage = experiment.task, experiment.stages[number]
    torch.manual_seed(torch_seed(options.seed, number))
    head = task.stage_head(stage, experiment.backbone.channels[stage.last_block - 1])
    if options.sync_batchnorm:
        head = nn.SyncBatchNorm.convert_sync_batchnorm(head)
    keeps_statistics = getattr(options, "learning_batchnorm", "train") == "eval"
    batchnorm = "eval" if keeps_statistics else experiment.batchnorm
    blocks = StageBlocks(experiment.backbone, stage, _frozen_batchnorm(options), batchnorm)
    module = StageModule(blocks, head.to(world.device), task)
    task.start_stage(stage, blocks, head)
    if not task.fixed_sizes:
        set_cudnn_benchmark(False)
    optimiser = experiment.optimiser(module.learning_parameters())
    views = experiment.views(stage)
    augment = choose_augment(options.augment_backend, (*views, *experiment.val_views(stage)), world.device)
    precision = options.resolved_precision(world.device)
    choices = experiment.choose_step(stage, options, world)
    return TrainStep(module, optimiser, views, precision, world, augment, choices, experiment.clip_norm)
