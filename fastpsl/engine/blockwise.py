"""All stages at once: each part of the backbone learns by a head and a loss of its own.

The idea is blockwise learning (Siddiqui et al., "Blockwise self-supervised learning at scale", arXiv
2302.01647), as a baseline of PSL: part i has the level of PSL's stage i. No gradient passes between parts.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.plan import Stage
from fastpsl.engine.reporter import EpochMetrics
from fastpsl.engine.run import Run, RunData
from fastpsl.engine.stage_blocks import Metrics, Runner, StageBlocks, run_blocks
from fastpsl.engine.step_modes import IS_SKIPPED
from fastpsl.engine.task import Task
from fastpsl.engine.train_step import StageModule
from fastpsl.kernels.normalise import joined
from fastpsl.models.backbone import Backbone, check_size
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec


class PartBlocks(StageBlocks):
    """The blocks of a part, and those below it, which run without gradients and normalise as they learn.

    Parts that see the same images share the pass through the blocks below: `known` has the features at the
    end of the part before, by the images that they are of, until the step's end.
    """

    def __init__(self, whole: StageBlocks, part: Stage, below: "PartBlocks | None"):
        nn.Module.__init__(self)
        self._whole = [whole]  # in a list, because it holds this one and must be no submodule
        self._below = [below]
        self.min_px, self.batchnorm, self.frozen_batchnorm = whole.min_px, whole.batchnorm, "train"
        self.frozen = whole.learning[: part.first_learning - 1]
        self.learning = whole.learning[part.first_learning - 1 : part.last_block]
        self._folded = []
        self.known: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    @override
    def _learning_norms(self) -> Iterator[nn.Module]:
        """Return the BatchNorms of all learning blocks: those below this part learn, too, in other parts."""
        return self._whole[0]._learning_norms()

    @property  # type: ignore[explicit-override]
    def runner(self) -> Runner:  # type: ignore[override]
        """The function that runs this part's blocks: the whole backbone's in training, else `run_blocks`."""
        whole = self._whole[0]
        return whole.runner if whole.training else run_blocks

    @runner.setter
    def runner(self, runner: Runner) -> None:
        self._whole[0].runner = runner

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Return the features of the part's last block, with gradients of the part alone."""
        check_size(min(images.shape[-2:]), self.min_px)
        storage = images.untyped_storage()._cdata
        place = (storage, images.storage_offset(), images.shape, images.stride(), images.dtype)
        below = self._below[0].known.get(place) if self._below[0] else None
        if below is None:
            with torch.no_grad():
                features = self.run(self.frozen, images)  # type: ignore[arg-type]  # a ModuleList is a sequence
        else:
            features = below[1]
        features = self.run(self.learning, features)  # type: ignore[arg-type]
        self.known[place] = images, features.detach()  # kept, or others might get their address
        return features


@dataclass
class _Part:
    """A part in training: its stage, its task, its views among all, and since `start_stage` its modules."""

    stage: Stage
    task: Task
    views: slice
    val_views: slice
    blocks: PartBlocks
    head: nn.Module


class Blockwise(Task):
    """A task in parts: for each, a copy of a task at the part's level, with its own head, state and loss.

    The loss is the sum of the parts'. As gradients do not pass between parts, each is the part's own. The
    last part's metrics keep their names; the others' begin with the part's name.

    Levels with equal views share them and, in a step, the pass through the blocks. Otherwise, each level's
    views pass through all blocks up to its part, of which those below it compute no gradients.

    Args:
        task: The task.
        parts: The parts, as `make_plan` divides the blocks.
        channels: The number of channels of each block's feature maps.

    Raises:
        ValueError: The task cannot be divided.
    """

    def __init__(self, task: Task, parts: Sequence[Stage], channels: Sequence[int]):
        if task.why_not_blockwise:
            raise ValueError(f"--plan blockwise: {task.why_not_blockwise}; use another --plan")
        self.tasks = [(part, copy.deepcopy(task)) for part in parts]
        self.channels = [channels[part.last_block - 1] for part in parts]
        self.num_levels, self.needs_labels = task.num_levels, task.needs_labels
        self.accuracy_name, self.has_own_order = task.accuracy_name, task.has_own_order
        self.fixed_exchange, self.one_size = task.fixed_exchange, task.one_size
        self.why_uncapturable = task.why_uncapturable
        self._last_stage, self._last = self.tasks[-1]

    @property
    @override
    def fixed_sizes(self) -> bool:
        return self._last.fixed_sizes

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        return self._slices(lambda task, level: task.views(level))[0]

    @override
    def val_views(self, level: int) -> tuple[ViewSpec, ...]:
        return self._slices(lambda task, level: task.val_views(level))[0]

    @override
    def pass_views(self, level: int) -> tuple[ViewSpec, ...]:
        return self._slices(lambda task, level: task.pass_views(level))[0]

    @override
    def inputs_per_image(self, level: int) -> int:
        return self._last.inputs_per_image(self._last_stage.level)

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        for _, task in self.tasks:
            task.check_data(data, batch_size)

    @override
    def before_training(self, run: Run) -> None:
        for _, task in self.tasks:
            task.before_training(run)

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        """Build the heads of all parts, by the parts' names."""
        pairs = zip(self.tasks, self.channels, strict=True)
        return nn.ModuleDict({part.name: task.stage_head(part, width) for (part, task), width in pairs})

    @override
    def start_stage(self, stage: Stage, blocks: StageBlocks, head: nn.Module) -> None:
        assert isinstance(head, nn.ModuleDict)
        self.parts: list[_Part] = []
        below, slices = None, self._slices(lambda task, level: task.views(level))[1]
        val_slices = self._slices(lambda task, level: task.val_views(level))[1]
        for (part, task), views, val_views in zip(self.tasks, slices, val_slices, strict=True):
            below = PartBlocks(blocks, part, below)
            self.parts.append(_Part(part, task, views, val_views, below, head[part.name]))
            task.start_stage(part, below, head[part.name])

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        losses, metrics = [], Metrics()
        places = [part.views if head.training else part.val_views for part in self.parts]
        if places[0] == places[-1] and len({each.shape for each in inputs}) == 1:
            # Now, so that every task that joins its views reads the same memory.
            inputs = joined(inputs).split([len(each) for each in inputs])
        for part, own in zip(self.parts, places, strict=True):
            own_batch = self._batch_of(part, own, batch)
            if not inputs[own]:
                continue  # its task has no validation views
            loss, of_part = part.task.loss(part.blocks, part.head, inputs[own], own_batch)
            losses.append(loss)
            metrics |= self._named(part, of_part)
            batch.extra |= {f"{part.stage.name}.{name}": value for name, value in own_batch.extra.items()}
        for part in self.parts:
            part.blocks.known.clear()
        return torch.stack(losses).sum(), metrics

    @override
    def variant(self, epoch: int) -> int:
        variants = {task.variant(epoch) for _, task in self.tasks}
        assert len(variants) == 1, variants
        return variants.pop()

    @override
    def batch_tensors(self, epoch: int, step: int, num_images: int) -> Mapping[str, Tensor]:
        return {
            f"{part.name}.{name}": tensor
            for part, task in self.tasks
            for name, tensor in task.batch_tensors(epoch, step, num_images).items()
        }

    @override
    def step_state(self) -> Iterator[Tensor]:
        for _, task in self.tasks:
            yield from task.step_state()

    @override
    def kept_state(self) -> Iterator[Tensor]:
        for _, task in self.tasks:
            yield from task.kept_state()

    @override
    def num_warm_up_batches(self, stage: Stage) -> int:
        return max(task.num_warm_up_batches(part) for part, task in self.tasks)

    @override
    def warm_up(self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> None:
        for part in self.parts:
            own = self._batch_of(part, part.views, batch)
            part.task.warm_up(part.blocks, part.head, inputs[part.views], own)
            part.blocks.known.clear()

    @override
    def start_epoch(self, context: EpochContext) -> EpochMetrics | None:
        return self._figures(lambda part: part.task.start_epoch(_context_of(part, context)))

    @override
    def epoch_order(self, epoch: int) -> np.ndarray | None:
        """Return the last part's order. The labels of other parts are not balanced by it."""
        return [task.epoch_order(epoch) for _, task in self.tasks][-1]

    @override
    def next_order(self, epoch: int) -> np.ndarray | None:
        return self.tasks[-1][1].next_order(epoch)

    @override
    def after_step(self, extras: Sequence[Mapping[str, Tensor]]) -> None:
        for part, task in self.tasks:
            task.after_step([_extra_of(part, extra) for extra in extras])

    @override
    def end_epoch(self) -> EpochMetrics | None:
        return self._figures(lambda part: part.task.end_epoch())

    @override
    def end_stage(self, context: EpochContext) -> None:
        for part in self.parts:
            part.task.end_stage(_context_of(part, context))

    @override
    def state_dict(self) -> Mapping[str, Any]:
        """Return the last part's state, as a run without parts has it, and the others' in a list "parts"."""
        *others, last = [task.state_dict() for _, task in self.tasks]
        return {**last, "parts": [dict(state) for state in others]}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        last = {name: value for name, value in state.items() if name != "parts"}
        for (_, task), own in zip(self.tasks, [*state["parts"], last], strict=True):
            task.load_state_dict(own)

    @override
    def lines_before(self, backbone: Backbone, stages: Sequence[Stage], data: RunData) -> Iterable[str]:
        return self._last.lines_before(backbone, stages, data)

    @override
    def seconds_before(self) -> float:
        return self._last.seconds_before()

    @override
    def chance(self, level: int) -> float | None:
        return self._last.chance(self._last_stage.level)

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor | None:
        own = self._slices(lambda task, level: task.views(level))[1][-1]
        return self._last.contact_sheet(inputs[own], _with_views(batch, own))

    @override
    def captions(self, batch: Batch) -> list[str]:
        own = self._slices(lambda task, level: task.views(level))[1][-1]
        return self._last.captions(_with_views(batch, own))

    def _slices(
        self, views_of: Callable[[Task, int], tuple[ViewSpec, ...]]
    ) -> tuple[tuple[ViewSpec, ...], list[slice]]:
        """Return the views of all parts, equal ones once, and for each part the slice that its views have."""
        of_parts = [views_of(task, part.level) for part, task in self.tasks]
        views, places = list[ViewSpec](), dict[tuple[ViewSpec, ...], slice]()
        for own in dict.fromkeys(of_parts):
            first = len(views)
            places[own] = slice(first, first + len(own))
            # A view follows another one by its place, here among those of all parts.
            views += (replace(v, follows=None if v.follows is None else first + v.follows) for v in own)
        return tuple(views), [places[own] for own in of_parts]

    def _batch_of(self, part: _Part, own: slice, batch: Batch) -> Batch:
        """Return the batch with the views and the `extra` of one part alone, for the part's task."""
        of_part = _with_views(batch, own)
        of_part.extra = _extra_of(part.stage, batch.extra)
        return of_part

    def _named(self, part: _Part, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a part's values, with the part's name before each name unless it is the last part."""
        if part is self.parts[-1]:
            return dict(values)
        return {f"{part.stage.name}_{name}": value for name, value in values.items()}

    def _figures(self, of_part: Callable[[_Part], EpochMetrics | None]) -> EpochMetrics | None:
        """Return the epoch's figures of all parts in one mapping; None if no part has figures."""
        found = [(part, of_part(part)) for part in self.parts]
        if all(figures is None for _, figures in found):
            return None
        return {
            name: value for part, figures in found for name, value in self._named(part, figures or {}).items()
        }


def _with_views(batch: Batch, own: slice) -> Batch:
    """Return a batch with some of its views."""
    part = copy.copy(batch)  # not `replace`, because a batch within a step lacks some fields
    part.images, part.draws, part.ops = batch.images[own], batch.draws[own], batch.ops[own]
    return part


def _extra_of(part: Stage, extra: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that a part's task has added to a batch, with IS_SKIPPED once it is there."""
    beginning = f"{part.name}."
    return {
        name.removeprefix(beginning): value
        for name, value in extra.items()
        if name.startswith(beginning) or name == IS_SKIPPED
    }


def _context_of(part: _Part, context: EpochContext) -> EpochContext:
    """Return the context of a part, whose passes run through its blocks and its head."""
    step = copy.copy(context.train_step)
    step.module = StageModule(part.blocks, part.head, part.task)
    step.release = context.train_step.release  # type: ignore[method-assign]  # it frees that step's memory
    return replace(context, train_step=step)
