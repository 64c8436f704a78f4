"""The task of segmentation on VOC2012, train → val: fine-tune a network to name the class of each pixel.

Sources: UIC, Table 5; SSL++, Fig. 3. The published protocols are data: image sets, schedules and crops.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.console.installed import install
from fastpsl.engine.dataset_pass import EpochContext, Predictions, begin_folder
from fastpsl.engine.optim.schedules import Schedule, polynomial, step_drops
from fastpsl.engine.plan import Stage
from fastpsl.engine.run import RunData
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.task import Task
from fastpsl.engine.train_step import TrainStep
from fastpsl.files.atomic import write_atomically
from fastpsl.kernels.draws import Keys, Slot, uniforms
from fastpsl.pipelines.datasets.voc.annotations import VOID, mask_png, palette
from fastpsl.pipelines.datasets.voc.dataset import VOC
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.annotated import AnnotatedBatch, AnnotatedImage, AnnotatedLoader, read_image
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import Input, ViewSpec
from fastpsl.transfer.image_input import (
    check_decoder,
    denormalised,
    normalised,
    padded,
    resized,
    resized_sides,
)
from fastpsl.transfer.segmentation.fcn import Network

BatchNorm = Literal["train", "eval", "fixed"]


@dataclass(frozen=True, kw_only=True)
class SegmentationProtocol:
    """A protocol of segmentation."""

    train: tuple[str, ...] = ("2012_train",)  # image sets to learn from (`pipelines.voc.VOC`)
    test: tuple[str, ...] = ("2012_val",)
    needs_sbd: bool  # whether SBD's images are learned from, too
    epochs: int = 0
    steps: int | None = None
    batch_size: int
    accumulate: int = 1  # parts of a batch that are read one after another to save memory
    lr: float
    intervals: tuple[int, ...] = (1,)  # shares of the training; the rate falls tenfold between two of them
    power: float | None = None  # the rate falls as a polynomial of this power to `end_lr` instead
    end_lr: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_biases: bool
    # Scales of random crops (`ScaledCrop`). Without them images keep their size, in training and in test.
    scales: tuple[float, float] | None = None
    max_share: float = 1.0  # see `ScaledCrop`
    auxiliary_weight: float = 0.0  # weight of the loss of a second head on B4, if the network has one
    batchnorm: BatchNorm

    def schedule(self) -> Schedule:
        """Return the schedule, which does not depend on the batch size."""
        if self.power is None:
            return step_drops(self.lr, self.intervals)
        return polynomial(self.lr, self.power, self.end_lr)

    def sgd(self) -> dict[str, Any]:
        """Return the arguments of `optim.sgd`."""
        names = ("momentum", "weight_decay", "decay_biases")
        return {name: getattr(self, name) for name in names}

    def stage(self, last_block: int) -> Stage:
        """Return the one stage, in which every block up to `last_block` learns."""
        return Stage("segmentation", 1, 1, last_block, self.epochs, self.steps)


def changed(
    protocol: SegmentationProtocol, epochs: int | None, lr: float | None, batchnorm: BatchNorm | None
) -> SegmentationProtocol:
    """Return the protocol with the given values in place of its own.

    Raises:
        ValueError: If `epochs` is below 1.
    """
    if epochs is not None and epochs < 1:
        raise ValueError(f"--epochs {epochs}: it must be 1 or more")
    if epochs is not None:
        protocol = replace(protocol, epochs=epochs, steps=None)
    if lr is not None:
        # The last rate keeps its ratio to the first.
        protocol = replace(protocol, lr=lr, end_lr=protocol.end_lr * lr / protocol.lr)
    return protocol if batchnorm is None else replace(protocol, batchnorm=batchnorm)


def batch_of(options: Any) -> dict[str, Any]:
    """Return the protocol's values of options that every run has."""
    protocol = PROTOCOLS[options.protocol]
    return {"batch_size": protocol.batch_size, "accumulate": protocol.accumulate}


def check_options(options: Any) -> None:
    """Raise for options of recipes/voc_segmentation.py that do not hold.

    Raises:
        ValueError: The decoder reads no whole images, or the protocol learns from SBD and --data comes
            without --sbd.
    """
    check_decoder(options.decoder)
    if PROTOCOLS[options.protocol].needs_sbd and options.data is not None and options.sbd is None:
        raise ValueError(
            f"--protocol {options.protocol} learns from SBD's masks too: give its folder, "
            f"--sbd benchmark_RELEASE"
        )


PROTOCOLS: dict[str, SegmentationProtocol] = {
    # SSL++, Table II (SGD, batch 2, momentum 0.9, decay 5e-4, rate .001, 50 epochs, no schedule) and Table I
    # (VOC12 train → val): "we use the publicly available testing protocol … of Long et al. [70] for
    # segmentation". The rest is not stated and follows Long et al.: no SBD, whole images, neither scaled nor
    # mirrored, and no decay of biases. BatchNorm uses its running statistics, because batches of 2 have no
    # useful ones. Its scales and shifts learn; Caffe's nets have them in their convolutions.
    "sslpp": SegmentationProtocol(
        needs_sbd=False, epochs=50, batch_size=2, lr=1e-3, decay_biases=False, batchnorm="eval",
    ),
    # Zhang et al., "Colorful image colorization", with voc-fcn-alexnet of shelhamer/fcn.berkeleyvision.org:
    # 50,000 steps at each rate, 20 times one image per step (iter_size). UIC does not state its schedule.
    # This is the one of the peers in its table. One difference: biases have twice the rate there.
    "fcn_alexnet": SegmentationProtocol(
        needs_sbd=True, steps=150_000, batch_size=20, accumulate=20, lr=1e-4, intervals=(1, 1, 1),
        decay_biases=False, batchnorm="eval",
    ),
    # MMSelfSup, benchmarks/mmsegmentation/voc12aug/fcn_r50-d8_512x512_20k_voc12aug: 4 GPUs of 4 images with
    # SyncBN. Differences: its photometric distortion is left out here. Its decoding head has two 3x3
    # convolutions of 512 channels and reads B5 again after them, and its auxiliary head has one of 256;
    # torchvision's have one each, of 512 and 256. Its loss is divided by a number that includes void pixels.
    "mmseg": SegmentationProtocol(
        needs_sbd=True, steps=20_000, batch_size=16, lr=0.01, power=0.9, end_lr=1e-4, decay_biases=True,
        scales=(0.5, 2.0), max_share=0.75, auxiliary_weight=0.4, batchnorm="train",
    ),
}  # fmt: skip


# From mmsegmentation's (2048, 512): the longer side is at most four times the size of the shorter one.
LONG_OF_SHORT = 4
TRIES = 11


@dataclass(frozen=True)
class ScaledCrop:
    """A random crop of a randomly scaled image, mirrored half the time.

    The shorter side is resized to `size_px` times a random scale, then a square of `size_px` is cropped at
    random. Images that are smaller than the crop stay so. A crop that shows one class alone, or one class in
    at least `max_share` of its pixels, is drawn anew, ten times at most. Void pixels do not count.
    """

    size_px: int
    scales: tuple[float, float]
    max_share: float  # largest share of one class

    def __call__(self, image: Tensor, mask: Tensor, keys: Keys) -> tuple[Tensor, Tensor]:
        """Crop an image (uint8 [3, h, w]) and its mask (uint8 [h, w]) by the keys of this one image."""
        scale, *places = uniforms(keys, Slot.CROP, 1 + 2 * TRIES)[0].tolist()
        least, most = self.scales
        size_px = round(self.size_px * (least + (most - least) * scale))
        sides = resized_sides(mask.shape[0], mask.shape[1], size_px, LONG_OF_SHORT * size_px)
        image = resized(image, sides)
        mask = F.interpolate(mask[None, None], sides, mode="nearest-exact")[0, 0]
        for down, right in np.reshape(places, (TRIES, 2)):
            rows, columns = self._part(down, sides[0]), self._part(right, sides[1])
            if self._is_mixed(mask[rows, columns]):
                break
        image, mask = image[:, rows, columns], mask[rows, columns]
        if uniforms(keys, Slot.FLIP, 1)[0, 0] < 0.5:
            image, mask = image.flip(-1), mask.flip(-1)
        return image.contiguous(), mask.contiguous()

    def _part(self, share: float, side_px: int) -> slice:
        first = int(share * (max(side_px - self.size_px, 0) + 1))
        return slice(first, first + self.size_px)

    def _is_mixed(self, mask: Tensor) -> bool:
        """Return whether the mask has two classes or more, and none takes more than its share."""
        counts = torch.bincount(mask.flatten(), minlength=VOID + 1)[:VOID]
        return int((counts > 0).sum()) > 1 and float(counts.max()) < self.max_share * float(counts.sum())


def require_torchmetrics() -> None:
    """Raise ValueError if torchmetrics is missing, before anything is trained."""
    try:
        import torchmetrics  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"segmentation is scored by torchmetrics, and it cannot be imported ({error}): "
            + install("transfer")
        ) from None


def with_background(data: VOC) -> list[str]:
    """Return the names of the classes in the order of the masks' numbers."""
    assert data.class_names is not None
    return ["background", *data.class_names]


def confusion(found: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of one mask without void, int64 [num_classes, num_classes] (truth, prediction)."""
    # Here, because it takes a second.
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    return multiclass_confusion_matrix(
        found.long(), truth.long(), num_classes, ignore_index=VOID, validate_args=False
    ).long()


def mask_scores(confusions: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """Compute mIoU and IoU_<class> over the pixels of all images together, as VOC scores.

    A class that is neither in the truth nor in the predictions has no IoU and does not count in the mean. One
    that is predicted alone has 0 %. If no pixel counts, there is no class and mIoU is 0.

    Args:
        confusions: int64 [N, C, C] of N images.
        class_names: Names of the C classes, the background first.
    """
    from torchmetrics.classification import MulticlassJaccardIndex

    total = torch.from_numpy(confusions.sum(0))
    # Rank 0 scores alone, after the others have left.
    metric = MulticlassJaccardIndex(
        len(class_names), average="none", validate_args=False, sync_on_compute=False
    )
    nothing = torch.zeros(0, dtype=torch.long)
    metric.update(nothing, nothing)  # because it warns of scores without an update
    metric.confmat += total
    has_pixels = (total.sum(0) + total.sum(1) > 0).tolist()
    values = [100 * value for value in metric.compute().tolist()]
    named = zip(class_names, values, has_pixels, strict=True)
    scores = {f"IoU_{name}": value for name, value, is_scored in named if is_scored}
    return {"mIoU": sum(scores.values()) / max(len(scores), 1)} | scores


MASKS = "masks"


@dataclass
class Segmentation(Task):
    """A task that learns each pixel's class and writes masks of the validation images.

    The loss is the cross-entropy of an image's pixels that are not void. Validation images are read whole.
    Their shorter side is resized to `crop.size_px` if there is a crop.
    """

    network: Network
    input: Input
    crop: ScaledCrop | None = None  # crop of training images; without it they are read as they are
    auxiliary_weight: float = 0.0  # weight of the auxiliary head's loss
    num_levels: int = field(default=1, init=False)
    # Number of classes, with the background; set by `check_data`.
    num_classes: int = field(default=0, init=False)

    @property
    @override
    def fixed_sizes(self) -> bool:
        return self.crop is not None

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        """Store the number of classes, with the background as one more."""
        self.num_classes = data.num_classes + 1

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        """Return no view, because images have different sizes."""
        return ()

    @override
    def input_record(self, level: int) -> dict[str, Any]:
        return self.input.as_dict()

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        return self.network.head(self.num_classes)

    @override
    def train_loader(self, data: RunData) -> AnnotatedLoader:
        voc, seed = data.train, data.options.seed
        assert isinstance(voc, VOC)

        def read(index: int, epoch: int) -> AnnotatedImage:
            image, mask = read_image(voc, index), torch.from_numpy(voc.mask(index))
            if self.crop is not None:
                image, mask = self.crop(image, mask, Keys(seed, epoch, np.array([index], np.int64)))
            return image, {"mask": mask}

        return data.annotated_loader(read)

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Return the mean of `mask_losses`, and it and the share of correct pixels, void left out, as
        metrics.
        """
        images, masks = self._batch(batch)
        scores, *auxiliary = self.network.scores(blocks, head, images)
        losses = mask_losses(scores, masks)
        loss = losses.mean() + sum(self.auxiliary_weight * mask_losses(a, masks).mean() for a in auxiliary)
        num = torch.ones_like(losses).sum()
        right = _mean_of_known((scores.argmax(1) == masks).float(), masks)
        return loss, {"loss": (losses.detach().sum(), num), "pixels_right": (right.sum(), num)}

    def _batch(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return normalised images [B, C, H, W] and masks int64 [B, H, W], padded with zeros and void."""
        assert isinstance(batch, AnnotatedBatch)
        side_px = 1 if self.crop is None else self.crop.size_px
        images = padded([normalised(image, self.input) for image in batch.images], side_px)
        masks = images.new_full((len(images), *images.shape[-2:]), VOID, dtype=torch.int64)
        for place, target in zip(masks, batch.targets, strict=True):
            height, width = target["mask"].shape
            place[:height, :width] = target["mask"]
        return images, masks

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Any) -> Tensor:
        """Return the images as the network sees them, overlaid with their masks in VOC's colours."""
        images, masks = self._batch(batch)
        colours = torch.from_numpy(palette()).float()[masks.cpu()].permute(0, 3, 1, 2) / 255
        plain = denormalised(images, self.input)
        return torch.where(masks.cpu()[:, None] > 0, 0.5 * plain + 0.5 * colours, plain)

    @override
    def end_stage(self, context: EpochContext) -> None:
        """Write the results of the validation images.

        predictions.npz gets "confusion", int64 [N, C, C] (truth, prediction), and masks/<id>.png the
        predicted masks.
        """
        train_step, data, masks = context.train_step, context.run.data.val, context.run.folder / MASKS
        assert isinstance(data, VOC)
        science = context.val_science(task=repr(self))
        if context.world.rank == 0:
            begin_folder(masks, science)  # other ranks wait for it in `predict`
        context.predict(lambda images: self.predict_images(images, data, train_step, masks), science)

    def predict_images(
        self, images: range, data: VOC, train_step: TrainStep, masks: Path
    ) -> Iterator[Predictions]:
        """Write the masks of images to the folder `masks`, and yield {"confusion": int64 [1, C, C]} each."""
        for index in images:
            truth = torch.from_numpy(data.mask(index)).to(train_step.world.device)
            prediction = self.found(read_image(data, index).to(train_step.world.device), train_step)
            path = masks / f"{data.image_id(index)}.png"
            write_atomically(path, mask_png(prediction.cpu().numpy()), durable=False)
            yield {"confusion": confusion(prediction, truth, self.num_classes)[None].cpu().numpy()}

    def found(self, image: Tensor, train_step: TrainStep) -> Tensor:
        """Predict the class of each pixel, uint8 [h, w], of an image, uint8 [3, h, w]."""
        (height, width), module = image.shape[-2:], train_step.module
        if self.crop is not None:
            short = self.crop.size_px
            image = resized(image, resized_sides(height, width, short, LONG_OF_SHORT * short))
        with train_step.autocast():
            images = padded([normalised(image, self.input)], 1)
            scores, *_ = self.network.scores(module.blocks, module.head, images)
        if scores.shape[-2:] != (height, width):
            scores = F.interpolate(scores, (height, width), mode="bilinear", align_corners=False)
        return scores.argmax(1)[0].to(torch.uint8)


def mask_losses(scores: Tensor, masks: Tensor) -> Tensor:
    """Return the mean cross-entropy, float32 [B], of the pixels that are not void in each image.

    Scores are float32 [B, C, H, W] and masks int64 [B, H, W]. The loss of an image does not depend on the
    sizes of others. It is FCN's normalised loss with one image per pass; the rate 1e-4 is for a normalised
    loss. torchvision and mmsegmentation divide by the pixels of the whole batch.
    """
    return _mean_of_known(F.cross_entropy(scores, masks, ignore_index=VOID, reduction="none"), masks)


def _mean_of_known(values: Tensor, masks: Tensor) -> Tensor:
    """Return the mean of each image's values where its mask is not void; 0 if all of it is."""
    known = masks != VOID
    return (values * known).sum((1, 2)) / known.sum((1, 2)).clamp(min=1)
