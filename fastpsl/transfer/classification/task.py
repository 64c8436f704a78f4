"""The task of multi-label classification: fine-tune a backbone to name the classes in an image.

Sources: UIC, Table 5; SSL++, Fig. 3.
"""

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.dataset_pass import PART, EpochContext, Predictions
from fastpsl.engine.plan import Stage
from fastpsl.engine.run import Run
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.task import Task
from fastpsl.engine.train_step import TrainStep
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.models.backbone import Backbone
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.loader.augment import choose_augment
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import Input, ViewSpec, train_view
from fastpsl.tasks.classify import average_and_linear
from fastpsl.transfer.classification.protocols import fc6

STD, BIAS = 0.01, 0.1
# Test crops are drawn in this epoch, so that they are the same after any length of training.
_TEST_EPOCH = 0


def crop_view(input: Input, size_px: int, area: tuple[float, float], ratio: tuple[float, float]) -> ViewSpec:
    """Return a view of random crops, flipped half the time, then treated as the weights' input record states.

    Args:
        input: Record of what the network reads.
        size_px: Side of a crop.
        area: Share of the image's area that a crop takes.
        ratio: Aspect ratios of crops.
    """
    return replace(train_view(input, size_px), crop=RandomResizedCrop(size_px, area, ratio))


def reinitialise(block: nn.Module) -> None:
    """Initialise fully-connected layers as the classifier's: weights N(0, .01), biases .1.

    A BatchNorm between them (alexnet_rotnet's, whose layers have no bias) gets mean 0, variance 1, scale 1
    and shift .1. Its statistics were those of the old layer. Used with its running statistics, it
    then equals such a bias.
    """
    for part in block.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=STD)
        if isinstance(part, nn.BatchNorm1d):
            part.reset_parameters()
        if isinstance(part, nn.Linear | nn.BatchNorm1d) and part.bias is not None:
            nn.init.constant_(part.bias, BIAS)


def reinitialise_fc(backbone: Backbone) -> None:
    """Reinitialise fc6 and all later blocks in place; do nothing if the backbone has no fc6."""
    if "fc6" in backbone.block_names:
        for block in backbone.blocks()[fc6(backbone) - 1 :]:
            reinitialise(block)


@dataclass
class MultiLabel(Task):
    """A task with a linear classifier on the last block and a sigmoid for each class.

    The classifier reads the average over the block's positions (fc7 has one position).

    Attributes:
        view: View of training images and of the test's crops.
        num_crops: Crops of a test image; its score is the sum of their outputs before the sigmoid.
        num_levels: Always 1.
        targets: int8 [N, C], as `VOC.targets`; set by `check_data`.
        class_names: Names of the C classes; set by `check_data`.
    """

    view: ViewSpec
    num_crops: int
    num_levels: int = field(default=1, init=False)
    targets: Tensor = field(init=False)
    class_names: list[str] = field(init=False)

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        """Store the labels."""
        assert isinstance(data, VOC) and data.class_names is not None
        self.targets, self.class_names = torch.from_numpy(data.targets()), data.class_names

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.view,)

    @override
    def val_views(self, level: int) -> tuple[ViewSpec, ...]:
        """Return no view, because `end_stage` scores the test images, one at a time."""
        return ()

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        """Return a head that maps features [B, channels, h, w] to outputs [B, num_classes]."""
        head = average_and_linear(channels, len(self.class_names), STD)
        reinitialise(head)
        return head

    @override
    def start_stage(self, stage: Stage, blocks: StageBlocks, head: nn.Module) -> None:
        self.targets = self.targets.to(next(head.parameters()).device)

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Return `masked_bce` of the batch; skipped samples do not count."""
        valid = batch.indices >= 0
        targets = self.targets[batch.indices.clamp(min=0)]
        targets = torch.where(valid[:, None], targets, -1)
        num = valid.sum().float()
        loss = masked_bce(head(blocks(inputs[0])).float(), targets, num)
        return loss, {"loss": (loss.detach() * num, num)}

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return the images as the network sees them."""
        return self.view.denormalise(inputs[0])

    @override
    def captions(self, batch: Batch) -> list[str]:
        """Return the classes of each image, difficult ones in brackets; nothing for a skipped image."""
        rows = self.targets.cpu()[batch.indices.clamp(min=0).cpu()].tolist()
        rows = [row if index >= 0 else [] for index, row in zip(batch.indices.tolist(), rows, strict=True)]
        return [
            ", ".join(
                name if target > 0 else f"({name})"
                for name, target in zip(self.class_names, row, strict=False)
                if target
            )
            for row in rows
        ]

    @override
    def end_stage(self, context: EpochContext) -> None:
        """Write the test images' outputs to predictions.npz as "scores", float32 [N, num_classes]."""
        run, data = context.run, context.run.data.val
        assert data is not None
        views = (self.view,) * self.num_crops
        science = context.val_science(seed=run.options.seed, crops=self.num_crops, view=repr(self.view))
        with (
            run.data.loader(data, views, train=False, batch_size=PART) as loader,
            contextlib.closing(MultiCropPredictor(run, context.train_step, loader)) as predictor,
        ):
            context.predict(predictor.predict_images, science)


def masked_bce(outputs: Tensor, targets: Tensor, num: Tensor) -> Tensor:
    """Return the binary cross-entropy summed over the classes and divided by the number of images.

    Args:
        outputs: float32 [B, C], before the sigmoid.
        targets: int8 [B, C]: 1 if the class is in the image, 0 if not, -1 if it does not count (difficult
            objects).
        num: Number of images in the batch that are not padding; 0 is treated as 1.
    """
    losses = F.binary_cross_entropy_with_logits(outputs, targets.clamp(min=0).float(), reduction="none")
    # torch.where instead of a product, because outputs of padding may not be finite.
    return torch.where(targets >= 0, losses, 0.0).sum() / num.clamp(min=1)


class MultiCropPredictor:
    """A network's predictions for consecutive test images, for `EpochContext.predict`.

    The crops of an image form a batch of their own. Consecutive parts are read in one epoch of the loader,
    which stays a few batches ahead.
    """

    def __init__(self, run: Run, train_step: TrainStep, loader: Loader):
        self.run, self.train_step, self.loader = run, train_step, loader
        self.augment = choose_augment(run.options.augment_backend, loader.views, run.world.device)
        self._batches: Generator[Batch, None, None] | None = None
        self._next_step = 0

    @torch.no_grad()
    def predict_images(self, images: range) -> Iterator[Predictions]:
        """Yield {"scores": float32 [1, num_classes]} for each image of one part of this rank.

        Args:
            images: Numbers of the images. The scores of an image that was skipped are [0, num_classes].
        """
        batch = self._batch(images.start // (PART * self.run.world.size))
        inputs = self.augment.inputs(batch, self.loader.views, self.train_step.dtype)
        module = self.train_step.module
        for row, index in enumerate(batch.indices.tolist()[: len(images)]):
            crops = torch.cat([view[row : row + 1] for view in inputs])
            with self.train_step.autocast():
                outputs: Tensor = module.head(module.blocks(crops))
            scores = outputs.float().sum(0, keepdim=True).cpu().numpy()
            yield {"scores": scores if index >= 0 else scores[:0]}

    def _batch(self, step: int) -> Batch:
        if self._batches is None or step != self._next_step:
            self.close()
            self._batches = self.loader.epoch(_TEST_EPOCH, step)
        self._next_step = step + 1
        return next(self.run.reporter.watched(self._batches))

    def close(self) -> None:
        if self._batches is not None:
            self._batches.close()
