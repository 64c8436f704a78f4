"""Classes by their labels: supervised learning, and fine-tuning with few labels (psl.txt, section 4.3 and Tables 5 to 7)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.task import Task
from fastpsl.engine.trunk import Metrics, Trunk
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.views import ViewSpec

TOP = 5


@dataclass
class Classify(Task):
    """Cross-entropy of one linear classifier on the last block's average-pooled features, as ResNet has it.

    train_view, held_out_view: what is learned from and what is scored (fastpsl.pipelines.standard_views has the usual two). The number
    of classes is that of the training data. `head_std`: initial weights are N(0, head_std) and biases 0; None is torch's own
    uniform initialisation.
    """

    train_view: ViewSpec
    held_out_view: ViewSpec
    head_std: float | None = None
    num_levels: int = field(default=1, init=False)
    num_classes: int = field(default=0, init=False)
    needs_labels = True

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        """Takes the number of classes; ValueError where there is nothing to tell apart."""
        self.num_classes = checked_num_classes(data)

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.train_view,)

    @override
    def held_out_views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.held_out_view,)

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        """Features [B, channels, h, w] to logits [B, num_classes]."""
        return average_and_linear(channels, self.num_classes, self.head_std)

    @override
    def loss(
        self, trunk: Trunk, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Cross-entropy; top1 and, of more than five classes, top5."""
        logits = head(trunk(inputs[0])).float()
        valid = (batch.indices >= 0).float()
        loss = masked_cross_entropy(logits, batch.labels, valid)
        num = valid.sum()
        return loss, {"loss": (loss.detach() * num, num)} | top_right(logits, batch.labels, valid)

    @override
    def chance(self, level: int) -> float:
        """Top-1 accuracy of guessing."""
        return 1 / self.num_classes

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """The pictures as the network sees them."""
        return self.train_view.pictures(inputs[0])


def checked_num_classes(data: Dataset) -> int:
    """The data's number of classes; ValueError unless there are two at least."""
    if data.num_classes < 2:
        raise ValueError(f"{data.num_classes} class in the training data: a classifier needs two or more")
    return data.num_classes


def average_and_linear(channels: int, num_classes: int, std: float | None = None) -> nn.Sequential:
    """Features [B, channels, h, w] to logits [B, num_classes]: their average over the map, and `linear`."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(channels, num_classes, std))


def linear(num_features: int, num_classes: int, std: float | None = None) -> nn.Linear:
    """A linear classifier; with `std`, weights of N(0, std) and biases 0."""
    made = nn.Linear(num_features, num_classes)
    if std is not None:
        nn.init.normal_(made.weight, std=std)
        nn.init.zeros_(made.bias)
    return made


def masked_cross_entropy(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Mean over the samples where `valid` (float [B]) is 1; logits float32 [B, classes], labels int64 [B]."""
    losses = F.cross_entropy(logits, labels.clamp(min=0), reduction="none")
    # where, and not a product: padding may hold what is not finite
    return torch.where(valid > 0, losses, 0.0).sum() / valid.sum().clamp(min=1)


def top_right(logits: Tensor, labels: Tensor, valid: Tensor, suffix: str = "") -> Metrics:
    """top1 and top5 of the valid samples; no top5 of five classes or fewer, where it says nothing."""
    num = valid.sum()
    ranked = logits.topk(min(TOP, logits.shape[1]), 1).indices == labels[:, None]
    metrics = {f"top1{suffix}": ((ranked[:, 0] * valid).sum(), num)}
    if logits.shape[1] > TOP:
        metrics[f"top5{suffix}"] = ((ranked.any(1) * valid).sum(), num)
    return metrics
