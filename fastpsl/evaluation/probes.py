"""Classifiers on blocks of a frozen backbone, all of them in one pass: what linear probes and block probes share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.trunk import Metrics, Trunk
from fastpsl.evaluation.blocks import block_shapes
from fastpsl.models.backbone import Backbone
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.classify import Classify, masked_cross_entropy, top_right


@dataclass(kw_only=True)
class Probes(Classify):
    """Independent classifiers, each of a block; every one's loss counts once in the sum, so that each learns as if it were alone.

    `head`, which a subclass has, makes a module that takes the features of all blocks that run, B1 first, and gives {name: logits
    [B, num_classes]} in float32. backbone: that of the job. more_crops: held-out views besides `held_out_view`, whose softmaxes are
    averaged with its own.
    """

    backbone: Backbone
    more_crops: tuple[ViewSpec, ...] = ()

    @override
    def held_out_views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.held_out_view, *self.more_crops)

    def block_shapes(self) -> list[tuple[int, ...]]:
        """(channels, height, width) of every block, in held-out pictures."""
        return block_shapes(self.backbone, self.held_out_view)

    @override
    def loss(
        self, trunk: Trunk, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Sum of all classifiers' cross-entropies. While training, top1 of the last one alone; held out, top1 and top5 of each.

        Held out, several crops of a picture are one answer, the mean of their softmaxes, as DeepCluster has it; UIC does not say.
        """
        valid = (batch.indices >= 0).float()
        num, total = valid.sum(), torch.zeros((), device=valid.device)
        metrics: Metrics = {}
        crops: list[dict[str, Tensor]] = [head(trunk.features(images)) for images in inputs]
        *_, last = crops[0]
        for name in crops[0]:
            logits = log_mean_softmax([outputs[name] for outputs in crops])
            total = total + masked_cross_entropy(logits, batch.labels, valid)
            if name == last or not head.training:
                metrics |= top_right(logits, batch.labels, valid, f"_{name}")
        if head.training:  # the screen has a line for few numbers
            metrics = {name: value for name, value in metrics.items() if name.startswith("top1")}
        return total, {"loss": (total.detach() * num, num)} | metrics


def log_mean_softmax(logits: Sequence[Tensor]) -> Tensor:
    """Logits [B, classes] of each crop to logits [B, classes] of all: of the mean of their softmaxes; of one crop its own."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([crop.log_softmax(1) for crop in logits]).logsumexp(0) - math.log(len(logits))
