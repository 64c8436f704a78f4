"""The task of multi-label classification: fine-tune a backbone to name the classes in an image.

Sources: UIC, Table 5; SSL++, Fig. 3.

Both protocols follow philkr/voc-classification (Krähenbühl et al., cited by UIC and SSL++). Crops have .1
to .5 of the area, BatchNorm uses its running statistics, and gradients are clipped at 10. The new classifier
is N(0, .01) with biases .1, and the outputs of ten random crops are summed. That code crops as Caffe does (a
scale of .5 to 2); DeepCluster's script states an area.
"""

import contextlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.dataset_pass import PART, EpochContext, Predictions
from fastpsl.engine.optim.schedules import Schedule, step_drops
from fastpsl.engine.plan import Stage
from fastpsl.engine.run import Run
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.task import Task
from fastpsl.engine.train_step import TrainStep
from fastpsl.kernels.crops import RandomResizedCrop
from fastpsl.models.backbone import Backbone
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.augment import choose_augment
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.loader.loader import Loader
from fastpsl.pipelines.views import Input, ViewSpec, train_view
from fastpsl.tasks.classify import average_and_linear


def label_scores(
    predictions: Mapping[str, np.ndarray], targets: np.ndarray, class_names: Sequence[str]
) -> dict[str, float]:
    """Score multi-label predictions.

    AP is scikit-learn's, the area under the curve by steps; images of equal score enter together.
    DeepCluster's script subtracts 1e-5 from the scores of positives, so that these come last among equal
    ones. Sums of ten crops are hardly ever equal.

    Args:
        predictions: "image", int64 [n], the rows of `targets` that were predicted (others do not count), and
            "scores", float [n, C], higher for surer.
        targets: int8 [N, C]: 1 if the class is in the image, 0 if not, -1 if only difficult objects are,
            which are not counted.
        class_names: Names of the C classes.

    Returns:
        Percent: "AP_<class>" of each class, and "mAP", their mean. A class without positives has no AP and is
        left out of the mean.

    Raises:
        ValueError: If no class has any positives, or a score is not finite.
    """
    from sklearn.metrics import average_precision_score  # here, because the import takes a second

    image, scores = predictions["image"], predictions["scores"]
    truths = targets[image]
    assert scores.shape == truths.shape == (len(image), len(class_names)), (scores.shape, truths.shape)
    if not np.isfinite(scores).all():
        raise ValueError("the scores are not numbers: the training has diverged; lower --lr")
    each = {}
    for number, name in enumerate(class_names):
        counted = truths[:, number] >= 0
        if (truths[:, number] > 0).any():
            truth = truths[counted, number]
            each[f"AP_{name}"] = 100 * float(average_precision_score(truth, scores[counted, number]))
    if not each:
        raise ValueError(
            "no image of the test set has any class that is not difficult: nothing can be scored"
        )
    return {"mAP": sum(each.values()) / len(each)} | each


Layers = Literal["fc6_8", "all"]
BATCH_SIZE = 16


@dataclass(frozen=True)
class Rate:
    """A learning rate that drops by `factor` between `intervals`, which are shares of the training."""

    lr: float  # for a batch of `BATCH_SIZE`
    intervals: tuple[int, ...] = (1,)
    factor: float = 0.5


@dataclass(frozen=True, kw_only=True)
class MultiLabelProtocol:
    """A protocol: image sets, schedule and crops."""

    train: tuple[str, ...]  # image sets to learn from (`pipelines.voc.VOC`)
    test: tuple[str, ...]
    fc6_8: Rate  # rate where fc6 to fc8 learn
    all: Rate  # rate where every layer learns
    epochs: int = 0
    steps: int | None = None
    momentum: float = 0.9
    weight_decay: float
    new_fc: bool  # whether fc6 and fc7 are initialised anew, as the classifier is
    # Share of the image's area that a crop takes, in training and in test.
    area: tuple[float, float] = (0.1, 0.5)
    ratio: tuple[float, float] = (1.0, 1.0)
    num_crops: int = 10  # crops of a test image
    clip_norm: float = 10.0
    batchnorm: Literal["eval"] = "eval"

    def rate(self, layers: Layers) -> Rate:
        """Return the rate for what learns."""
        return self.fc6_8 if layers == "fc6_8" else self.all

    def schedule(self, layers: Layers, batch_size: int) -> Schedule:
        """Return the schedule, in proportion to the batch size."""
        rate = self.rate(layers)
        return step_drops(rate.lr * batch_size / BATCH_SIZE, rate.intervals, rate.factor)

    def stage(self, layers: Layers, backbone: Backbone) -> Stage:
        """Return the one stage, in which the blocks from fc6 on or all blocks learn."""
        first = 1 if layers == "all" else fc6(backbone)
        return Stage("voc", 1, first, backbone.num_blocks, self.epochs, self.steps)


def constants_of(protocol: MultiLabelProtocol, layers: Layers) -> dict[str, Any]:
    """Return the values of the protocol and its rate for `layers`, for the settings of result.json."""
    values = asdict(protocol)
    del values["fc6_8"], values["all"]
    return values | asdict(protocol.rate(layers)) | {"lr_batch": BATCH_SIZE}


def changed(
    protocol: MultiLabelProtocol, layers: Layers, steps: int | None, lr: float | None
) -> MultiLabelProtocol:
    """Return the protocol with the given values in place of its own.

    Raises:
        ValueError: If `steps` is below 1.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"--steps {steps}: it must be 1 or more")
    if steps is not None:
        protocol = replace(protocol, epochs=0, steps=steps)
    if lr is None:
        return protocol
    rate = replace(protocol.rate(layers), lr=lr)
    return replace(protocol, fc6_8=rate) if layers == "fc6_8" else replace(protocol, all=rate)


def fc6(backbone: Backbone) -> int:
    """Return the number of the block named fc6, from 1."""
    if "fc6" not in backbone.block_names:
        raise ValueError(
            f"--layers fc6_8: {backbone.name} has no fc6 (its blocks are {', '.join(backbone.block_names)}); "
            "give --layers all, or the weights of an alexnet or vgg16"
        )
    return backbone.block_names.index("fc6") + 1


PROTOCOLS: dict[str, MultiLabelProtocol] = {
    # DeepCluster, eval_voc_classif.py and its .sh: 80,000 steps. The older scripts for Caffe, of 150,000
    # steps, have the rate for all layers. The README's erratum: 72.0 mAP (fc6_8) was measured while scales
    # and shifts of BatchNorm learned in frozen blocks, too; it is 70.4 where they do not, as here.
    "deepcluster": MultiLabelProtocol(
        train=("2007_trainval",), test=("2007_test",),
        fc6_8=Rate(0.003, (5_000,) * 16), all=Rate(0.001, (20_000,) * 4), steps=80_000,
        weight_decay=1e-6, new_fc=True,
    ),
    # SSL++, Tables I and II. The paper leaves out the "magic init", so nothing is rescaled. It does not state
    # whether fc6 and fc7 are initialised anew. Here they are not, as is the default of
    # philkr/voc-classification.
    "sslpp": MultiLabelProtocol(
        train=("2007_train",), test=("2007_test",),
        fc6_8=Rate(0.003), all=Rate(0.001), epochs=200,
        weight_decay=5e-4, new_fc=False,
    ),
}  # fmt: skip


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
    """

    view: ViewSpec  # view of training images and of the test's crops
    num_crops: int  # crops of a test image; its score is the sum of their outputs before the sigmoid
    num_levels: int = field(default=1, init=False)
    targets: Tensor = field(init=False)  # int8 [N, C], as `VOC.targets`; set by `check_data`
    class_names: list[str] = field(init=False)  # names of the C classes; set by `check_data`

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
        targets = self.targets.cpu()
        rows = [targets[index].tolist() if index >= 0 else [] for index in batch.indices.tolist()]
        named = [zip(self.class_names, row, strict=False) for row in rows]
        return [
            ", ".join(name if is_in > 0 else f"({name})" for name, is_in in row if is_in) for row in named
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
    """Return the binary cross-entropy summed over the classes and divided by `num` images, or by 1 for 0.

    Outputs, float32 [B, C], are before the sigmoid. Targets, int8 [B, C], are 1 if the class is in the
    image, 0 if not, and -1 if it does not count.
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
        """Yield {"scores": float32 [1, num_classes]} for each image of one part of this rank."""
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
