"""The contract between the trainer and a pretext task."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.plan import Stage
from fastpsl.engine.reporter import Figures
from fastpsl.engine.run_data import BatchSource, RunData
from fastpsl.engine.trunk import Metrics, Trunk
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.views import ViewSpec


class Task:
    """A pretext task. Override `views`, `head` and `loss`; every other method is a hook whose default does nothing.

    docs/add_a_task.md shows a short one. The methods stand in the order in which the trainer calls them.
    """

    num_levels: int = 1
    """Number of difficulties; levels count from 1."""
    needs_labels: bool = False
    """Refuse data without labels, and held-out data of other classes."""
    has_own_order: bool = False
    """`epoch_order` gives the order of every epoch, so --order cannot be chosen."""

    @property
    def fixed_sizes(self) -> bool:
        """Whether all images have one size. For each of many, cuDNN would time its algorithms anew."""
        return True

    # What is learned

    def views(self, level: int) -> tuple[ViewSpec, ...]:
        """Return the views of each sample at a level; none where `train_loader` makes batches of its own."""
        raise NotImplementedError

    def head(self, level: int, channels: int) -> nn.Module:
        """Return a new head for a stage, on `channels` feature maps of the stage's last block."""
        raise NotImplementedError

    def loss(
        self, trunk: Trunk, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Compute the loss of a batch, in training and (with `head.training` false) held out.

        Args:
            inputs: View k of the batch at k, [B, C, H, W], ready for the trunk.

        Returns:
            The mean over samples with `batch.indices >= 0`, and metrics.
        """
        raise NotImplementedError

    def held_out_views(self, level: int) -> tuple[ViewSpec, ...]:
        """Return the views of the held-out pass; none where there is no such pass."""
        return self.views(level)

    def images_per_sample(self, level: int) -> int:
        """Return how many images of --batch-size one sample makes."""
        return 1

    # The data

    def check_data(self, data: Dataset, batch_size: int) -> None:
        """Take from the data what the task must know of it, before anything is trained.

        Args:
            batch_size: Images a step, over all ranks.

        Raises:
            ValueError: This data, or this batch, cannot serve.
        """

    def pass_views(self, level: int) -> tuple[ViewSpec, ...]:
        """Return the views of the passes that `start_epoch` makes over the data, to be checked before anything is trained.

        A task that makes long passes must name them here: a copy of the last step is kept for a stop in the midst of one.
        """
        return ()

    def train_loader(self, data: RunData) -> BatchSource | None:
        """Return a loader of batches that are no views, such as annotated images; None for the loader of `views`."""
        return None

    def input_record(self, level: int) -> dict[str, Any]:
        """Return what the network sees, for the checkpoint. Override it where `views` gives none."""
        return self.views(level)[0].input_record()

    # A stage, from its start to its end

    def start_stage(self, stage: Stage, trunk: Trunk, head: nn.Module) -> None:
        """Prepare for a stage whose modules are made: build momentum copies, empty queues."""

    def num_warm_up_batches(self, stage: Stage) -> int:
        """Return how many batches pass before a new stage's first step, without being steps."""
        return 0

    def warm_up(self, trunk: Trunk, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> None:
        """Take one of the warm-up batches, without gradients, in train mode. No epoch of training has their draws."""

    def start_epoch(self, context: EpochContext) -> Figures | None:
        """Prepare for an epoch before its first step, by passes over all training samples where it needs them.

        It is not called where an epoch goes on after a resume. It is called again where a signal stopped it.

        Returns:
            Figures for epochs.jsonl, those of rank 0; None for none.
        """
        return None

    def epoch_order(self, epoch: int) -> np.ndarray | None:
        """Return the order of an epoch that begins or goes on, the same on all ranks; None for the loader's own.

        Args:
            epoch: Counted over all stages.

        Returns:
            Dataset indices, int64 [num_samples], each any number of times. A task that gives one says so by `has_own_order`.
        """
        return None

    def after_step(self) -> None:
        """Update momentum copies and queues after an optimiser step."""

    def end_epoch(self) -> Figures | None:
        """Make new labels after an epoch's last step, also of an epoch that --max-steps-per-stage cut short.

        Returns:
            Figures for epochs.jsonl, those of rank 0; None for none.
        """
        return None

    def end_stage(self, context: EpochContext) -> None:
        """Make what is made of the data once a network has learned, after the stage's last step and held-out pass.

        It is called again where a pass was stopped.
        """

    # Resume

    def state_dict(self) -> Mapping[str, Any]:
        """Return everything that a resume needs, in tensors, numbers, strings, lists and dicts.

        It is called on every rank at the same step and may communicate; what rank 0 returns is saved.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back, on every rank, what `state_dict` returned on rank 0."""

    # For people

    def chance(self, level: int) -> float | None:
        """Return the accuracy of guessing, to stand beside the held-out accuracy; None where there is none."""
        return None

    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor | None:
        """Return what the network sees, float32 [n, 3, h, w] in [0, 1]; None for no sheet."""
        return None

    def captions(self, batch: Batch) -> list[str]:
        """Return what was drawn for each sample, a text each; none for no captions."""
        return []
