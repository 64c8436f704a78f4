"""Define the pretext task that SSL++ combines with pseudo-labels (SSL++, section IV.C)."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.task import Task
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Op, ViewSpec


class Proxy(Task):
    """A task of one view with a loss on the backbone's features, so that another head can share them.

    Override `head` (the paper's V1), `features_loss` and `features_losses`.

    Args:
        view: What the network sees of each sample.
        ops: The task's own op, the last one. It may make several images of one, image-major.
    """

    def __init__(self, view: ViewSpec, *ops: Op):
        self._view = replace(view, ops=(*view.ops, *ops))

    def view(self) -> ViewSpec:
        """Return what the network sees of each sample."""
        return self._view

    def features_loss(self, features: Tensor, head: nn.Module, batch: Batch) -> tuple[Tensor, Metrics]:
        """Compute the loss of a batch from the features of all its images."""
        raise NotImplementedError

    def features_losses(self, features: Tensor, head: nn.Module, batch: Batch) -> Tensor:
        """Compute the loss of each image, float32 [B], from the features of all its images."""
        raise NotImplementedError

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.view(),)

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        return self.features_loss(blocks(inputs[0]), head, batch)

    @override
    def losses(self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        return self.features_losses(blocks(inputs[0]), head, batch)
