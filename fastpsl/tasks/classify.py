"""Learn classes from labels: supervised learning and fine-tuning (PSL, section 4.3, Tables 5, 6, 8, 9)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.task import Task
from fastpsl.models.convolutional import AveragePool
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec

TOP = 5


@dataclass
class Classify(Task):
    """A task that trains one linear classifier on the last block's average-pooled features by cross-entropy.

    The number of classes is that of the training data.

    Attributes:
        train_view: View of the training images. `fastpsl.pipelines` has the usual ones.
        val_view: View of the validation images.
        head_std: Initial weights are N(0, head_std²) and biases 0. None means torch's uniform initialisation.
    """

    train_view: ViewSpec
    val_view: ViewSpec
    head_std: float | None = None
    num_levels: int = field(default=1, init=False)
    num_classes: int = field(default=0, init=False)
    needs_labels = True

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        """Store the number of classes, which must be two or more."""
        self.num_classes = data.num_classes
        if self.num_classes < 2:
            raise ValueError(
                f"classes in the training data: {self.num_classes}; a classifier needs two or more: "
                "give a folder per class"
            )

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.train_view,)

    @override
    def val_views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.val_view,)

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        return average_and_linear(channels, self.num_classes, self.head_std)

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Return the cross-entropy, with top1 and, for more than five classes, top5."""
        logits = head(blocks(inputs[0])).float()
        valid = (batch.indices >= 0).float()
        loss = masked_cross_entropy(logits, batch.labels, valid)
        num = valid.sum()
        return loss, {"loss": (loss.detach() * num, num)} | top_correct(logits, batch.labels, valid)

    @override
    def losses(self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        return cross_entropies(head(blocks(inputs[0])).float(), batch.labels)

    @override
    def chance(self, level: int) -> float:
        return 1 / self.num_classes

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        return self.train_view.denormalise(inputs[0])


def average_and_linear(channels: int, num_classes: int, std: float | None = None) -> nn.Sequential:
    """Build a head of average pool and linear layer, which makes logits [B, num_classes] of feature maps.

    Args:
        channels: The number of channels of the feature maps, float [B, channels, h, w].
        num_classes: The number of classes.
        std: Initial weights are N(0, std²) and biases 0. None means torch's uniform initialisation.

    Returns:
        A new module.
    """
    return nn.Sequential(AveragePool(), nn.Flatten(), linear(channels, num_classes, std))


def linear(num_features: int, num_classes: int, std: float | None = None) -> nn.Linear:
    """Build a linear classifier; with `std`, its weights are N(0, std²) and its biases 0."""
    layer = nn.Linear(num_features, num_classes)
    if std is not None:
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return layer


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each sample.

    Args:
        logits: float32 [B, classes].
        labels: int64 [B]; -1 counts as label 0.

    Returns:
        float32 [B].
    """
    return F.cross_entropy(logits, labels.clamp(min=0), reduction="none")


def masked_cross_entropy(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Return the mean cross-entropy of the valid samples, 0 if there are none.

    Args:
        logits: float32 [B, classes]. Those of other samples may be infinite or NaN.
        labels: int64 [B]. Those of other samples may be negative.
        valid: float [B], 1 for valid samples and else 0.

    Returns:
        A float32 scalar.
    """
    losses = cross_entropies(logits, labels)
    # where instead of a product, because padding may hold values that are not finite.
    return torch.where(valid > 0, losses, 0.0).sum() / valid.sum().clamp(min=1)


def mean_of_valid(losses: Tensor, valid: Tensor, constant: Tensor | None = None) -> tuple[Tensor, Metrics]:
    """Return what `Task.loss` returns for losses of images: their mean over the valid ones and its metrics.

    Args:
        losses: float32 [B]. Those of other samples may be infinite or NaN.
        valid: bool [B].
        constant: The losses of the best constant answer, [B], for a metric "loss_constant"; None for none.

    Returns:
        The mean, 0 without a valid sample, and the metrics.
    """
    num, total = valid.sum().float(), torch.where(valid, losses, 0.0).sum()
    metrics = {"loss": (total.detach(), num)}
    if constant is not None:
        metrics["loss_constant"] = (torch.where(valid, constant, 0.0).sum(), num)
    return total / num.clamp(min=1), metrics


def scored(logits: Tensor, labels: Tensor, valid: Tensor, name: str = "accuracy") -> tuple[Tensor, Metrics]:
    """Return what `Task.loss` returns for a classification: the loss and its metrics.

    Args:
        logits: As in `masked_cross_entropy`.
        labels: As there.
        valid: As there.
        name: The metric that counts the valid samples whose largest logit is the label's.

    Returns:
        `masked_cross_entropy`, and the metrics "loss" and `name`.
    """
    num, loss = valid.sum(), masked_cross_entropy(logits, labels, valid)
    right = ((logits.argmax(1) == labels) * valid).sum()
    return loss, {"loss": (loss.detach() * num, num), name: (right, num)}


def top_correct(logits: Tensor, labels: Tensor, valid: Tensor, suffix: str = "") -> Metrics:
    """Return top1 and top5 of the valid samples, without top5 for five classes or fewer."""
    num = valid.sum()
    ranked = logits.topk(min(TOP, logits.shape[1]), 1).indices == labels[:, None]
    metrics = {f"top1{suffix}": ((ranked[:, 0] * valid).sum(), num)}
    if logits.shape[1] > TOP:
        metrics[f"top5{suffix}"] = ((ranked.any(1) * valid).sum(), num)
    return metrics
