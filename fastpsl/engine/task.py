"""The interface between the trainer and a pretext task."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.plan import Stage
from fastpsl.engine.reporter import EpochMetrics
from fastpsl.engine.run import BatchSource, Run, RunData
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.models.backbone import Backbone
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec


class Task:
    """A pretext task. Subclasses override `views`, `head` and `loss`; all other methods have defaults.

    https://fastpsl.github.io/fastpsl/how_to/add_a_task.html shows a short example.
    """

    num_levels: int = 1
    """The number of difficulties. Levels are counted from 1."""
    needs_labels: bool = False
    """Whether data without labels, and validation data with other classes, are rejected."""
    accuracy_name: str = "accuracy"
    """The name by which people see the metric "accuracy": what it counts, such as "permutation accuracy"."""
    has_own_order: bool = False
    """Whether `epoch_order` defines the order of every epoch, so that --order cannot be chosen."""

    why_not_blockwise: str = ""
    """Why `--plan blockwise` cannot have a task for each part; empty if it can."""
    fixed_exchange: bool = True
    """Whether ranks exchange equally many numbers in every step. If not, several ranks capture no step."""

    why_uncapturable: str = ""
    """Why a step is captured as a CUDA graph only if asked for; empty if `--graph auto` captures it."""

    one_size: str = ""
    """Why its views have one size in all stages; empty if `ViewSpec.resized` may make others of them."""

    @property
    def fixed_sizes(self) -> bool:
        """Whether all images have one size. If not, no step is captured, and cuDNN's benchmark is off."""
        return True

    # What is learned

    def views(self, level: int) -> tuple[ViewSpec, ...]:
        """Return the views of each sample at a level.

        Args:
            level: The level, from 1 to `num_levels`.

        Returns:
            The views; none if `train_loader` makes its own batches.
        """
        raise NotImplementedError

    def head(self, level: int, channels: int) -> nn.Module:
        """Build the head of a stage.

        Args:
            level: The stage's level.
            channels: The number of channels of the feature maps of the stage's last block.

        Returns:
            A new module.
        """
        raise NotImplementedError

    def stage_head(self, stage: Stage, channels: int) -> nn.Module:
        """Build the head of a stage: `head`, unless it depends on more than the level.

        Args:
            stage: The stage.
            channels: As in `head`.

        Returns:
            A new module.
        """
        return self.head(stage.level, channels)

    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Compute the loss of a batch, in training or, if `head.training` is false, on validation data.

        In training, it is captured once and replayed for every batch, so it must be a function of tensors. A
        number that changes between steps must be a tensor on the device. A tensor that lasts must be written
        in place and not replaced. What it writes is in `step_state`. The batch has no `epoch`, `step` and
        `bad`.

        Args:
            blocks: The blocks of the backbone that the stage runs.
            head: The stage's head.
            inputs: The batch's views, each [N, C, H, W] and ready for the network. N is B times the images
                that the view's operations make of one.
            batch: The batch.

        Returns:
            The mean loss over samples with `batch.indices >= 0`, and metrics. A metric is a pair of float32
            scalars on the device, the sum over valid samples and their number. fastpsl/console/words.py
            tells how names are shown.
        """
        raise NotImplementedError

    def losses(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> Tensor | None:
        """Compute the loss of each image of a batch in training; only `fastpsl replay` calls it.

        It writes nothing that `loss` writes.

        Args:
            blocks: As in `loss`.
            head: As in `loss`.
            inputs: As in `loss`.
            batch: As in `loss`.

        Returns:
            float32 [B], whose mean over all ranks' samples with `batch.indices >= 0` is the loss; None if the
            loss is no mean over images.
        """
        return None

    def val_views(self, level: int) -> tuple[ViewSpec, ...]:
        """Return the views of the pass over the validation data; none to skip the pass.

        Args:
            level: The stage's level.
        """
        return self.views(level)

    def learned(self, data: Dataset) -> Dataset:
        """Return the part of the training data that is learned from; by default all of it.

        Args:
            data: The training data, after `check_data`.
        """
        return data

    def inputs_per_image(self, level: int) -> int:
        """Return the number of network inputs that a step has of each image.

        It is for tasks that show several turns or copies of an image as options choose. The views that a
        method always has, such as SimCLR's two crops, are not counted.

        Args:
            level: The stage's level.
        """
        return 1

    def variant(self, epoch: int) -> int:
        """Return the variant of the step in an epoch, which `loss` reads as `batch.variant`.

        Each variant is captured by itself, because a captured step cannot branch.

        Args:
            epoch: The epoch, counted over all stages.

        Returns:
            A small number, 0 or more.
        """
        return 0

    def batch_tensors(self, epoch: int, step: int, num_images: int) -> Mapping[str, Tensor]:
        """Return small tensors that depend on the epoch or the step, which `loss` reads as `batch.extra`.

        Args:
            epoch: The epoch of the batch.
            step: The batch's number in it.
            num_images: The images of the batch, over all ranks.

        Returns:
            Tensors on the host by name, of the same sizes for each batch.
        """
        return {}

    def step_state(self) -> Iterable[Tensor]:
        """Return the tensors that `loss` and `after_step` write, such as queues, stores and counts.

        A step with non-finite gradients leaves them as they were.

        Returns:
            Tensors of the present stage, which `start_stage` has made.
        """
        return ()

    def kept_state(self) -> Iterable[Tensor]:
        """Return those of `step_state` that are copied before each step, to undo a skipped one.

        By default all are: 40 bytes of traffic a step for each value of 4 bytes. A task of many whose
        `after_step` writes nothing in a skipped step leaves them out.

        Returns:
            Tensors of the present stage.
        """
        return self.step_state()

    # The data

    def check_data(self, data: Dataset, batch_size: int) -> None:
        """Check the data before the training, and store what the task needs to know about it.

        Args:
            data: The training data.
            batch_size: The number of images per step, over all ranks.

        Raises:
            ValueError: The data or the batch size does not fit.
        """

    def pass_views(self, level: int) -> tuple[ViewSpec, ...]:
        """Return the views of `start_epoch`'s passes over the data, which are checked before the training.

        A task with long passes must return them here, because the last step is then kept in case a pass is
        stopped.

        Args:
            level: The stage's level.
        """
        return ()

    def train_loader(self, data: RunData) -> BatchSource | None:
        """Return a loader of batches other than views, such as annotated images; None for the usual one.

        Args:
            data: The opened data of the run.
        """
        return None

    def input_record(self, level: int) -> dict[str, Any]:
        """Return the input record for the checkpoint. Override it if `views` returns none.

        Args:
            level: The stage's level.
        """
        return self.views(level)[0].input_record()

    def before_training(self, run: Run) -> None:
        """Make what the whole training reads, such as the outputs of another network for all images.

        It is called on every rank before the first stage, and again when the training resumes.

        Args:
            run: The run, whose folder may keep it.

        Raises:
            PassStopped: A signal arrived.
        """

    # A stage

    def start_stage(self, stage: Stage, blocks: StageBlocks, head: nn.Module) -> None:
        """Prepare for a stage with its new modules, such as by building momentum copies and emptying queues.

        Args:
            stage: The stage.
            blocks: The blocks that it runs, on the device.
            head: Its head, on the device.
        """

    def num_warm_up_batches(self, stage: Stage) -> int:
        """Return the number of batches for `warm_up` before a new stage's first step.

        Args:
            stage: The stage.
        """
        return 0

    def warm_up(self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> None:
        """Process a warm-up batch, without gradients and in train mode. No epoch has the same augmentations.

        Args:
            blocks: The blocks of the backbone that the stage runs.
            head: The stage's head.
            inputs: As in `loss`.
            batch: The batch.
        """

    def start_epoch(self, context: EpochContext) -> EpochMetrics | None:
        """Prepare for an epoch before its first step, for example by passes over all training samples.

        It is not called if training resumes within the epoch. It is called again if a signal stopped it.

        Args:
            context: The epoch, with the operations that are allowed.

        Returns:
            Metrics for epochs.jsonl, of which rank 0's are logged; None for none.
        """
        return None

    def epoch_order(self, epoch: int) -> np.ndarray | None:
        """Return the order of an epoch that begins or resumes, the same on all ranks; None for the loader's.

        Args:
            epoch: The epoch, counted over all stages.

        Returns:
            Indices of samples, int64 [num_samples], each any number of times. A task that returns an order
            sets `has_own_order`.
        """
        return None

    def next_order(self, epoch: int) -> np.ndarray | None:
        """Return the order of the epoch that comes next, so that its first batches start at once.

        It is called after an epoch's last step, before `end_epoch`.

        Args:
            epoch: That epoch, counted over all stages.

        Returns:
            What `epoch_order` will return; None if `start_epoch` is needed before.
        """
        return None

    def after_step(self, extras: Sequence[Mapping[str, Tensor]]) -> None:
        """Update momentum copies and queues after an optimizer step; a function of tensors, as `loss`.

        Args:
            extras: `Batch.extra` of each of the step's batches, in which `loss` may have put tensors. Each
                has IS_SKIPPED, float32 [1] on the device: not 0 if the step is skipped.
        """

    def end_epoch(self) -> EpochMetrics | None:
        """Finish an epoch after its last step, also if --max-steps-per-stage cut it short.

        Returns:
            Metrics for epochs.jsonl, of which rank 0's are logged; None for none.
        """
        return None

    def end_stage(self, context: EpochContext) -> None:
        """Finish a stage after its last step and its pass over the validation data.

        A task may make predictions here. The method is called again if a signal stopped one of its passes.

        Args:
            context: The stage's last epoch, with the operations that are allowed.
        """

    # Resume

    def state_dict(self) -> Mapping[str, Any]:
        """Return everything that a resume needs, as tensors, numbers, strings, lists and dicts.

        It is called on every rank at the same step and may communicate. Rank 0's result is saved.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore, on every rank, the result of rank 0's `state_dict`.

        Args:
            state: The state.
        """

    # For people

    def lines_before(self, backbone: Backbone, stages: Sequence[Stage], data: RunData) -> Iterable[str]:
        """Return what to tell before the training on rank 0, such as the cost of another network.

        Args:
            backbone: The backbone, in train mode, which may be moved to the device.
            stages: The plan's stages.
            data: The opened data of the run.
        """
        return ()

    def seconds_before(self) -> float:
        """Return about how long `before_training` takes, as `lines_before` has found."""
        return 0.0

    def chance(self, level: int) -> float | None:
        """Return the accuracy of guessing, to be shown with the validation accuracy; None if there is none.

        Args:
            level: The stage's level.

        Returns:
            A fraction in [0, 1], or None.
        """
        return None

    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor | None:
        """Return the network's input as images for people.

        Args:
            inputs: As in `loss`.
            batch: The batch, on the CPU.

        Returns:
            Images, float32 [n, 3, h, w] in [0, 1]; None for no sheet.
        """
        return None

    def captions(self, batch: Batch) -> list[str]:
        """Return a caption with the random draws for each sample; none for no captions.

        Args:
            batch: The batch, on the CPU.
        """
        return []
