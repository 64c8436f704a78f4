"""Train classifiers on a frozen backbone's blocks in one pass: the base of linear and block probes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.evaluation.blocks import block_shapes
from fastpsl.models.backbone import Backbone
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.classify import Classify, masked_cross_entropy, top_correct


@dataclass(kw_only=True)
class Probes(Classify):
    """A task that trains independent classifiers on blocks of a frozen backbone.

    The loss is the sum of the classifiers' losses, so each learns as if it were alone. A subclass defines
    `head`, which makes a module from the features of all blocks, B1 first, to {name: logits [B, num_classes]}
    in float32.

    Attributes:
        backbone: The backbone of the run.
        more_crops: Validation views besides `val_view`; the softmaxes of all views are averaged.
    """

    backbone: Backbone
    more_crops: tuple[ViewSpec, ...] = ()

    @override
    def val_views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.val_view, *self.more_crops)

    def block_shapes(self) -> list[tuple[int, ...]]:
        """Return (channels, height, width) of every block in validation images."""
        return block_shapes(self.backbone, self.val_view)

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Return the sum of all classifiers' cross-entropies, and the metrics.

        The metrics are top1 of the last classifier in training, and top1 and top5 of each on validation
        images. Several validation crops of an image are scored by the mean of their softmaxes, as in
        DeepCluster; UIC does not say.
        """
        valid = (batch.indices >= 0).float()
        num, total = valid.sum(), torch.zeros((), device=valid.device)
        metrics: Metrics = {}
        crops: list[dict[str, Tensor]] = [head(blocks.features(images)) for images in inputs]
        *_, last = crops[0]
        for name in crops[0]:
            logits = log_mean_softmax([outputs[name] for outputs in crops])
            total = total + masked_cross_entropy(logits, batch.labels, valid)
            if name == last or not head.training:
                metrics |= top_correct(logits, batch.labels, valid, f"_{name}")
        if head.training:  # because the progress line has room for few numbers
            metrics = {name: value for name, value in metrics.items() if name.startswith("top1")}
        return total, {"loss": (total.detach() * num, num)} | metrics


def log_mean_softmax(logits: Sequence[Tensor]) -> Tensor:
    """Return the log of the mean of the crops' softmaxes, [B, classes]; for one crop, its logits themselves.

    Args:
        logits: Logits [B, classes] of each crop.
    """
    if len(logits) == 1:
        return logits[0]
    return torch.stack([crop.log_softmax(1) for crop in logits]).logsumexp(0) - math.log(len(logits))
