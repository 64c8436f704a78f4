"""Learn from a teacher: a student's features come to lie among those of others as a frozen network's do.

The loss is SEED's (arXiv 2101.04731). It compares an image with many others, whose teacher features are in a
queue. The student's similarities to them, by a linear layer on its averaged features, are to be those of the
teacher. SEED learns from crops that it distorts, and both networks have heads of two layers.

FitNets (arXiv 1412.6550) and DNA (arXiv 1911.13053) learn from a teacher in stages, too, one block from
another. FitNets compares whole maps and then goes on with labels. DNA gives each block of the student the
*teacher's* maps as its input. Here a block reads the student's own, and what is compared has no positions.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.console.words import number_of_weights, percent
from fastpsl.engine.distributed import gathered
from fastpsl.engine.gpu import milliseconds
from fastpsl.engine.plan import Stage
from fastpsl.engine.run import RunData
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.step_modes import IS_SKIPPED
from fastpsl.engine.task import Task
from fastpsl.engine.train_step import DTYPES
from fastpsl.kernels.autocast import autocast
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.models.backbone import Backbone
from fastpsl.models.teacher import Teacher
from fastpsl.models.weights import TOLD_BY_EXPORT, words_of_input
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.interface.reading import PLAIN
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Input, ViewSpec, train_view
from fastpsl.tasks.classify import average_and_linear, mean_of_valid
from fastpsl.tasks.contrastive.info_nce import enqueue

# The least share of an image in a crop. A smaller one often shows other things than the image is of.
LEAST_SCALE = 0.36
QUEUE, TEACHER_T, STUDENT_T = 65_536, 0.01, 0.2  # SEED's: features, and the temperatures
# The similarity to an empty place of the queue. An infinity would make the loss NaN.
_EMPTY = -100.0
# Images by which the cost is measured, and the features are tried. Few do not fill a GPU.
_TIMED = {"cpu": 16, "cuda": 128}


class BlockTimes(NamedTuple):
    """The milliseconds that an image takes forward, up to the end of each block."""

    teacher_ms: Sequence[float]
    time_student: Callable[[], Sequence[float]]  # measures the student, if its time is of interest


class Distill(Task):
    """A task that learns a frozen network's features of the same crops.

    The teacher sees the crop and the flip of the student at its own size, with its own channels. A stage that
    ends with block k of the student learns the teacher's block at the same depth, and the last stage its last
    block. The queue begins with a batch before the stage's first step, and grows to SEED's 65,536 features,
    or those of four fifths of fewer images.

    Args:
        teacher: The network to learn from.
        num_blocks: The number of the student's blocks.
        size_px: Side of the student's crops, in pixels.
    """

    def __init__(self, teacher: Teacher, num_blocks: int, *, size_px: int):
        self.teacher, self.num_blocks, self.size_px = teacher, num_blocks, size_px
        self.why_uncapturable, self.queue_size = teacher.network.why_uncapturable, QUEUE

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        """Return the student's view, and the teacher's of the same place."""

        def view(input: Input, size_px: int, follows: int | None) -> ViewSpec:
            crop = RandomResizedCrop(size_px, scale=(LEAST_SCALE, 1.0))
            return replace(train_view(input, size_px), crop=crop, follows=follows)

        own = view(Input(size_px=self.size_px), self.size_px, None)
        return own, view(self.teacher.input, self.teacher.size_px, 0)

    @override
    def stage_head(self, stage: Stage, channels: int) -> nn.Module:
        return average_and_linear(channels, self.teacher.channels[self._block_of(stage) - 1])

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        """Raise ValueError if the data's values are read otherwise than the teacher's were."""
        theirs = self.teacher.input.reading
        if theirs not in (PLAIN, data.reading):
            raise ValueError(
                f"--teacher {self.teacher.record['path']}: it was trained on images read "
                f"{theirs.in_words()}, and these are read {data.reading.in_words() or 'as they are'}; "
                "give the same --range and --bands"
            )
        self.queue_size = min(QUEUE, max(1, 4 * data.num_samples // 5))

    @override
    def start_stage(self, stage: Stage, blocks: StageBlocks, head: nn.Module) -> None:
        device = next(head.parameters()).device
        self.teacher.network.to(device)
        self._begin_queue(stage, device)

    def _begin_queue(self, stage: Stage, device: torch.device) -> None:
        """Choose the stage's block of the teacher, and empty the queue."""
        self.block = self._block_of(stage)
        self.queue = torch.zeros(self.queue_size, self.teacher.channels[self.block - 1], device=device)
        self.filled = torch.zeros(self.queue_size, 1, device=device)  # 1 where a place has a feature
        self.slot = torch.zeros((), dtype=torch.long, device=device)

    def _block_of(self, stage: Stage) -> int:
        """Return the teacher's block that a stage learns."""
        return self.teacher.block_beside(stage.last_block, self.num_blocks)

    @override
    def num_warm_up_batches(self, stage: Stage) -> int:
        return 1

    @override
    def warm_up(self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> None:
        """Begin the queue."""
        self._enqueue(self._marked(self.targets(inputs, batch), batch))

    def valid(self, batch: Batch) -> Tensor:
        """Return which samples count, bool [B]."""
        return batch.indices >= 0

    def targets(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return the teacher's features of a batch, float32 [B, D], without gradients."""
        return self.teacher.features(inputs[1], self.block)

    def _marked(self, targets: Tensor, batch: Batch) -> Tensor:
        """Return targets of length 1, and NaN for samples that do not count, which no queue takes."""
        return torch.where(self.valid(batch)[:, None], F.normalize(targets), torch.nan)

    def _enqueue(self, targets: Tensor, is_skipped: Tensor | None = None) -> None:
        """Put marked targets of all ranks into the queue, but in a skipped step."""
        targets = gathered(targets)[-len(self.queue) :]
        is_target = targets[:, :1] * 0 + 1  # NaN stays NaN: it fills no place
        enqueue(self.filled, self.slot.clone(), is_target, is_skipped)
        enqueue(self.queue, self.slot, targets, is_skipped)

    @override
    def losses(self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return the loss of each image: how the student's similarities differ from the teacher's.

        It is the cross-entropy of two distributions over the queue and the image's own teacher features.
        """
        targets = self.targets(inputs, batch)
        if head.training:
            batch.extra["targets"] = self._marked(targets, batch)
        return self.compare(head(blocks(inputs[0])), targets)

    def compare(self, students: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each image, float32 [B], of features [B, D] of both networks."""
        with torch.autocast(students.device.type, enabled=False):
            students, targets = F.normalize(students.float()), F.normalize(targets)
            is_filled = self.filled[:, 0] > 0

            def similarities(rows: Tensor) -> Tensor:
                others = torch.where(is_filled, rows @ self.queue.T, _EMPTY)
                return torch.cat([others, (rows * targets).sum(1, keepdim=True)], 1)

            expected = (similarities(targets) / TEACHER_T).softmax(1)
            return F.cross_entropy(similarities(students) / STUDENT_T, expected, reduction="none")

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Return the mean of `losses` over the images that count."""
        return mean_of_valid(self.losses(blocks, head, inputs, batch), self.valid(batch))

    @override
    def after_step(self, extras: Sequence[Mapping[str, Tensor]]) -> None:
        self._enqueue(torch.cat([extra["targets"] for extra in extras]), extras[0].get(IS_SKIPPED))

    @override
    def step_state(self) -> Iterator[Tensor]:
        yield from (self.queue, self.filled, self.slot)

    @override
    def kept_state(self) -> tuple[()]:
        """Return nothing, because a skipped step does not write the queue."""
        return ()

    @override
    def state_dict(self) -> Mapping[str, Any]:
        return {"queue": self.queue, "filled": self.filled, "slot": self.slot}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        return self.views(self.num_levels)[0].denormalise(inputs[0])

    @override
    def lines_before(self, backbone: Backbone, stages: Sequence[Stage], data: RunData) -> Iterator[str]:
        """Return which teacher it is, and what it costs, by passes of a few images.

        Raises:
            ValueError: The teacher's features of them are not finite, or the same for all.
        """
        teacher, record = self.teacher, self.teacher.record
        num = sum(weights.numel() for weights in teacher.network.parameters())
        names = ", ".join(dict.fromkeys((str(record["path"]), record["backbone"])))
        told_by = TOLD_BY_EXPORT if record.get("assumed") else ""
        yield (
            f"teacher: {names}, sha256 {record['sha256'][:8]}…, {number_of_weights(num)}, images of "
            f"{teacher.size_px} px, {words_of_input(teacher.input, told_by)}"
        )
        views = (self.views(self.num_levels)[0], self.teacher_view)
        size = min(_TIMED[data.world.device.type], data.batch_size)
        if data.options.order == "quasi_random":  # its lanes share a batch of the run
            size = data.batch_size
        loading = data.loader(data.train, views, train=True, batch_size=size)
        with loading as loader, contextlib.closing(loader.epoch(0)) as batches:
            own, theirs = next(batches).inputs(views, torch.float32)
        teacher_ms, features = _block_ms(teacher.network, theirs, data)
        teacher.network.cpu()  # until it is needed
        if not features.isfinite().all():
            raise ValueError(
                f"--teacher {record['path']}: its features of some images are not finite in "
                f"{data.options.resolved_precision(data.world.device)}; give another --precision, or another "
                "teacher"
            )
        if len(features) > 1 and (features == features[:1]).all():
            raise ValueError(
                f"--teacher {record['path']}: its features of {len(features)} images are the same, so it "
                "teaches nothing; give another teacher"
            )
        yield self.cost_line(BlockTimes(teacher_ms, lambda: _block_ms(backbone, own, data)[0]), stages, data)

    @property
    def teacher_view(self) -> ViewSpec:
        """The teacher's view of an image."""
        return self.views(self.num_levels)[1]

    def cost_line(self, times: BlockTimes, stages: Sequence[Stage], data: RunData) -> str:
        """Return a line about the teacher's time for an image and its share of each stage's step."""
        teacher_ms, student_ms, shares = times.teacher_ms, times.time_student(), list[str]()
        for stage in stages:
            its = teacher_ms[self._block_of(stage) - 1]
            # Once forward; backward twice as long, where blocks learn.
            below = student_ms[stage.first_learning - 2] if stage.first_learning > 1 else 0.0
            students = 3 * student_ms[stage.last_block - 1] - 2 * below
            students *= ((stage.size_px or self.size_px) / self.size_px) ** 2
            shares.append(f"{stage.name} {percent(its / (its + students))}")
        return (
            f"the teacher takes {teacher_ms[-1]:.2g} ms for an image, and about {', '.join(shares)} of a step"
        )


@torch.no_grad()
def _block_ms(backbone: Backbone, images: Tensor, data: RunData) -> tuple[list[float], Tensor]:
    """Return the milliseconds that an image takes up to the end of each block, and the last block's maps.

    The backbone moves to the run's device, and computes in evaluation mode.
    """
    device, precision = data.world.device, data.options.resolved_precision(data.world.device)
    was_training, maps, times = backbone.training, images, list[float]()
    backbone.to(device).eval()
    with autocast(device, DTYPES[precision]):
        for block in backbone.blocks():
            # A copy for each pass, because a block may compute in place.
            again = lambda block=block, maps=maps: block(maps.clone())
            times.append(min(milliseconds(again, device, repeats=3)) / len(images))
            maps = block(maps)
    backbone.train(was_training)
    return list(accumulate(times)), maps
