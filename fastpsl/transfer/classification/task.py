"""Multi-label classification: which of the classes are in a picture; learned by fine-tuning (uic.txt, Table 5; sslpp.txt, Fig. 3)."""

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.dataset_pass import EpochContext
from fastpsl.engine.plan import Stage
from fastpsl.engine.predictions import PART, Predictions
from fastpsl.engine.run import Run
from fastpsl.engine.run_data import open_loader
from fastpsl.engine.task import Task
from fastpsl.engine.train_step import TrainStep
from fastpsl.engine.trunk import Metrics, Trunk
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.models.backbone import Backbone
from fastpsl.pipelines.augment import choose_augment
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.input_record import Input
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.standard_views import train_view
from fastpsl.pipelines.views import ViewSpec
from fastpsl.pipelines.voc.dataset import VOC
from fastpsl.tasks.classify import average_and_linear
from fastpsl.transfer.classification.protocols import fc6

STD, BIAS = 0.01, 0.1
# Of the draws of test crops, which are of (seed, image, crop): the same whatever was learned, and for how long.
_TEST_EPOCH = 0


def crop_view(input: Input, size_px: int, area: tuple[float, float], ratio: tuple[float, float]) -> ViewSpec:
    """A random crop of a share of the picture's `area`, flipped half the time; then what the weights' input record says."""
    return replace(train_view(input, size_px), crop=RandomResizedCrop(size_px, area, ratio))


def reinitialise(block: nn.Module) -> None:
    """Fully-connected layers as the classifier begins: weights N(0, .01), biases .1.

    A BatchNorm between them (alexnet_rotnet's, whose layers have no bias) begins with mean 0, variance 1, scale 1 and shift .1: its
    statistics were those of the layer that is no more. By its running statistics it is such a bias then.
    """
    for part in block.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=STD)
        if isinstance(part, nn.BatchNorm1d):
            part.reset_parameters()
        if isinstance(part, nn.Linear | nn.BatchNorm1d) and part.bias is not None:
            nn.init.constant_(part.bias, BIAS)


def reinitialise_fc(backbone: Backbone) -> None:
    """`reinitialise` of fc6 and all behind it; nothing where there is no fc6."""
    if "fc6" in backbone.block_names:
        for block in backbone.blocks()[fc6(backbone) - 1 :]:
            reinitialise(block)


@dataclass
class MultiLabel(Task):
    """A linear classifier on the last block (averaged over its positions, of which fc7 has one), and a yes or no of each class.

    view: of training and of the test's crops, `num_crops` of which are one answer: the sum of their outputs before the sigmoid.
    """

    view: ViewSpec
    num_crops: int
    num_levels: int = field(default=1, init=False)
    targets: Tensor = field(init=False)
    class_names: list[str] = field(init=False)

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        """Takes the labels."""
        assert isinstance(data, VOC) and data.class_names is not None
        self.targets, self.class_names = torch.from_numpy(data.targets()), data.class_names

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.view,)

    @override
    def held_out_views(self, level: int) -> tuple[ViewSpec, ...]:
        """None: the test pictures are scored in `end_stage`, each alone."""
        return ()

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        """Features [B, channels, h, w] to outputs [B, num_classes]."""
        head = average_and_linear(channels, len(self.class_names), STD)
        reinitialise(head)
        return head

    @override
    def start_stage(self, stage: Stage, trunk: Trunk, head: nn.Module) -> None:
        self.targets = self.targets.to(next(head.parameters()).device)

    @override
    def loss(
        self, trunk: Trunk, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """`masked_bce` of the batch; skipped samples count for nothing."""
        valid = batch.indices >= 0
        targets = self.targets[batch.indices.clamp(min=0)]
        targets = torch.where(valid[:, None], targets, -1)
        num = valid.sum().float()
        loss = masked_bce(head(trunk(inputs[0])).float(), targets, num)
        return loss, {"loss": (loss.detach() * num, num)}

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """The pictures as the network sees them."""
        return self.view.pictures(inputs[0])

    @override
    def captions(self, batch: Batch) -> list[str]:
        """The classes that are in each picture; in brackets those that do not count. Nothing of a skipped one."""
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
        """The test pictures' outputs, predictions.npz: "scores", float32 [N, num_classes]."""
        run, data = context.run, context.run.data.val
        assert data is not None
        views = (self.view,) * self.num_crops
        science = context.held_out_science(seed=run.options.seed, crops=self.num_crops, view=repr(self.view))
        with (
            open_loader(data, views, run.options, run.world, batch_size=PART, train=False) as loader,
            contextlib.closing(MultiCropPredictor(run, context.train_step, loader)) as predictor,
        ):
            context.predict(predictor.predict_images, science)


def masked_bce(outputs: Tensor, targets: Tensor, num: Tensor) -> Tensor:
    """Binary cross-entropies of outputs (float32 [B, C], before the sigmoid), summed over the classes and divided by the `num` pictures of a batch.

    targets: int8 [B, C], 1 there, 0 not; where they are -1 nothing is counted (difficult objects).
    """
    losses = F.binary_cross_entropy_with_logits(outputs, targets.clamp(min=0).float(), reduction="none")
    # where, and not a product: padding may hold what is not finite
    return torch.where(targets >= 0, losses, 0.0).sum() / num.clamp(min=1)


class MultiCropPredictor:
    """A network's predictions of consecutive test images, for `predict`: crops of a picture are a batch of their own.

    Parts that follow one another are read on in one epoch of the loader, which stays a few batches ahead.
    """

    def __init__(self, run: Run, train_step: TrainStep, loader: Loader):
        self.run, self.train_step, self.loader = run, train_step, loader
        self.augment = choose_augment(run.options.augment, loader.views, run.world.device)
        self._batches: Generator[Batch, None, None] | None = None
        self._next_step = 0

    @torch.no_grad()
    def predict_images(self, images: range) -> Iterator[Predictions]:
        """{"scores": float32 [1, num_classes]} of each of one part of this rank; [0, num_classes] of a picture that was skipped."""
        batch = self._batch(images.start // (PART * self.run.world.size))
        inputs = self.augment.inputs(batch, self.loader.views, self.train_step.dtype)
        module = self.train_step.module
        for row, index in enumerate(batch.indices.tolist()[: len(images)]):
            crops = torch.cat([view[row : row + 1] for view in inputs])
            with self.train_step.autocast():
                outputs: Tensor = module.head(module.trunk(crops))
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
