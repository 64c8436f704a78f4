"""The task of detection on PASCAL VOC: a backbone is fine-tuned with a detector on top.

Sources: PSL, section 4.4.1; UIC, section 4.4; SSL++, Fig. 3. Threads of the loader decode, mirror
and resize an image. Its flip and its size are draws of (seed, epoch, image). After the last step the test
images are read one by one, and their detections are written to predictions.npz.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.utils import draw_bounding_boxes
from typing_extensions import override

from fastpsl.engine.dataset_pass import EpochContext, Predictions
from fastpsl.engine.options import RunOptions
from fastpsl.engine.plan import Stage
from fastpsl.engine.run import RunData
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.task import Task
from fastpsl.kernels.draws import Keys, Slot, integers, uniforms
from fastpsl.models.backbone import Backbone
from fastpsl.pipelines.datasets.voc.dataset import VOC, open_train_and_test
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.annotated import AnnotatedBatch, AnnotatedImage, AnnotatedLoader, read_image
from fastpsl.pipelines.views import Input
from fastpsl.transfer.detection.detector import Detector, layout_of
from fastpsl.transfer.detection.proposals import Proposals
from fastpsl.transfer.detection.protocols import DetectionProtocol
from fastpsl.transfer.image_input import (
    check_decoder,
    denormalised,
    normalised,
    padded,
    resized,
    resized_sides,
)

_SHEET_PX = 320


@dataclass
class Detection(Task):
    """A task that fine-tunes a backbone and a detector.

    Raises:
        ValueError: If the backbone or the files of proposals do not fit.
    """

    protocol: DetectionProtocol
    backbone: Backbone
    input: Input
    seed: int
    # Files for each training set, then for each test set, if the protocol's boxes are published ones.
    proposals: Sequence[str] = ()
    num_levels: int = field(default=1, init=False)
    fixed_sizes: ClassVar[bool] = False  # always False, because images keep their aspect ratios
    train: VOC = field(init=False)  # training images; set by `open`
    test: VOC = field(init=False)  # test images; set by `open`
    # Proposals for `train` and `test`, or None with an RPN.
    train_proposals: Proposals | None = field(default=None, init=False)
    test_proposals: Proposals | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        layout_of(self.backbone)
        protocol, num = self.protocol, len(self.proposals)
        sets = (*protocol.train_sets, *protocol.test_sets)
        if protocol.boxes_from == "rpn" and num:
            raise ValueError("--proposals: this protocol learns its own, by an RPN; leave it out")
        if protocol.boxes_from == "published" and num != len(sets):
            raise ValueError(
                f"--proposals: {num or 'no'} files, and Fast R-CNN needs one of each set; "
                f"give those of {' '.join(sets)} in this order (selective search's .mat, or Detectron's .pkl)"
            )
        if missing := [path for path in self.proposals if path and not Path(path).is_file()]:
            raise ValueError(f"--proposals {missing[0]}: no such file; give the published ones")

    def stage(self) -> Stage:
        """Return the protocol's one stage."""
        protocol, last = self.protocol, layout_of(self.backbone).last_block
        epochs = 0 if protocol.steps else protocol.epochs
        return Stage("detection", 1, protocol.first_learning, last, epochs, protocol.steps)

    def open(self, root: Path, options: RunOptions) -> tuple[Dataset, Dataset]:
        """Open the training and test sets in VOC's layout at `root`, as `Experiment.open`."""
        check_decoder(options.decoder)
        protocol = self.protocol
        self.train, self.test = open_train_and_test(root, protocol.train_sets, protocol.test_sets, "boxes")
        if protocol.boxes_from == "published":
            cut = len(protocol.train_sets)
            self.train_proposals = Proposals(self.proposals[:cut], self.train)
            self.test_proposals = Proposals(self.proposals[cut:], self.test)
        return self.train, self.test

    @override
    def views(self, level: int) -> tuple[()]:
        return ()

    @override
    def val_views(self, level: int) -> tuple[()]:
        return ()

    @override
    def input_record(self, level: int) -> dict[str, Any]:
        return self.input.as_dict()

    @override
    def train_loader(self, data: RunData) -> AnnotatedLoader:
        """Return a loader of the images that `read` returns."""
        return data.annotated_loader(self.read)

    def read(self, index: int, epoch: int) -> AnnotatedImage:
        """Read a training image, mirrored half the time and resized to a random size, and its targets.

        These are "boxes" float32 [n, 4] in its px, "labels" int64 [n] from 1, and "proposals" if published.
        """
        protocol, keys = self.protocol, Keys(self.seed, epoch, np.array([index], np.int64))
        image, objects = read_image(self.train, index), self.train.objects(index)
        learned = ~objects.difficult | protocol.with_difficult
        boxes = {"boxes": torch.from_numpy(objects.boxes[learned])}
        if self.train_proposals is not None:
            boxes["proposals"] = torch.from_numpy(self.train_proposals.boxes(index))
        height, width = image.shape[1:]
        if uniforms(keys, Slot.FLIP, 1)[0, 0] < 0.5:
            image = image.flip(-1)
            boxes = {name: mirrored(rows, width) for name, rows in boxes.items()}
        short_px = protocol.short_side[integers(keys, Slot.CROP, 1, len(protocol.short_side))[0, 0]]
        sides = resized_sides(height, width, short_px, protocol.max_long_px)
        boxes = {name: scaled(rows, (height, width), sides) for name, rows in boxes.items()}
        return resized(image, sides), boxes | {"labels": torch.from_numpy(objects.labels[learned] + 1)}

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        return Detector(self.backbone, self.protocol, self.train.num_classes)

    @override
    def start_stage(self, stage: Stage, blocks: StageBlocks, head: nn.Module) -> None:
        assert isinstance(head, Detector)
        head.bind(blocks)

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Any
    ) -> tuple[Tensor, Metrics]:
        """Return the sum of the detector's losses, and each of them; `head` must be bound to `blocks`."""
        assert isinstance(head, Detector) and isinstance(batch, AnnotatedBatch)
        images = [normalised(image, self.input) for image in batch.images]
        proposals = None if head.rpn is not None else [target["proposals"] for target in batch.targets]
        losses = head.losses(images, batch.targets, proposals)
        loss = torch.stack(list(losses.values())).sum()
        num = torch.full((), float(len(images)), device=loss.device)
        reported = {"loss": loss} | losses
        return loss, {name: (value.detach() * num, num) for name, value in reported.items()}

    @override
    def end_stage(self, context: EpochContext) -> None:
        """Write the test images' detections to predictions.npz, in px of the original; labels are from 0."""
        detector = context.head
        assert isinstance(detector, Detector)

        def predict_images(indices: range) -> Iterator[Predictions]:
            for index in indices:
                with context.train_step.autocast():
                    yield self.detected(detector, index, context.world.device)

        context.predict(predict_images, context.val_science(science=context.run.science))

    def detected(self, detector: Detector, index: int, device: torch.device) -> Predictions:
        """Return the detections in a test image, resized to the protocol's largest size."""
        image = read_image(self.test, index)
        height, width = image.shape[1:]
        sides = resized_sides(height, width, max(self.protocol.short_side), self.protocol.max_long_px)
        proposals = None
        if self.test_proposals is not None:
            original = torch.from_numpy(self.test_proposals.boxes(index))
            proposals = scaled(original, (height, width), sides).to(device)
        detections = detector.detections(normalised(resized(image, sides).to(device), self.input), proposals)
        return {
            "boxes": scaled(detections["boxes"], sides, (height, width)).cpu().numpy(),
            "scores": detections["scores"].cpu().numpy(),
            "labels": detections["labels"].cpu().numpy() - 1,
        }

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Any) -> Tensor:
        """Return the training images with their boxes, as the network sees them, padded with black to one
        size.
        """
        assert isinstance(batch, AnnotatedBatch)
        images = []
        for image, target in zip(batch.images, batch.targets, strict=True):
            plain = denormalised(normalised(image, self.input)[None], self.input)[0]
            width = max(1, min(plain.shape[1:]) // 100)
            drawn = draw_bounding_boxes(plain, target["boxes"].cpu(), colors="lime", width=width)
            scale = min(1.0, _SHEET_PX / max(drawn.shape[1:]))
            images.append(F.interpolate(drawn[None], scale_factor=scale, mode="area")[0])
        return padded(images, multiple_px=1)

    @override
    def captions(self, batch: Any) -> list[str]:
        """Return the classes in each image."""
        assert isinstance(batch, AnnotatedBatch)
        names = self.train.class_names or []
        labels = [target["labels"].unique().tolist() for target in batch.targets]
        return [", ".join(names[label - 1] for label in row) or "none" for row in labels]


def mirrored(boxes: Tensor, width: int) -> Tensor:
    """Mirror boxes [n, 4] in an image of `width` px left and right."""
    left, top, right, bottom = boxes.unbind(1)
    return torch.stack((width - right, top, width - left, bottom), 1)


def scaled(boxes: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Scale boxes [n, 4] with an image whose (height, width) was `before` and is `after`."""
    y, x = (new / old for new, old in zip(after, before, strict=True))
    left, top, right, bottom = boxes.unbind(1)
    return torch.stack((left * x, top * y, right * x, bottom * y), 1)
