"""The training step of the C4 detector in three implementations: ours, torchvision's FasterRCNN and
Detectron2.

All get the same images, sizes and numbers of boxes. torchvision's model also gets our weights, so that as
many boxes come out of each of its parts.

torchvision's model is a ResNet with FrozenBatchNorm2d: its stages up to layer3 as the backbone, 14 x 14 RoIs
from one map, and layer4 as the box head. Optimiser, loop and layout are those of its reference scripts.
Detectron2's model is its default configuration, which is the same model. Neither resizes images.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from fastpsl.engine.distributed import World
from fastpsl.engine.experiment import Experiment, make_train_step, place_backbone
from fastpsl.engine.optim.sgd_adam import sgd
from fastpsl.engine.options import TrainingOptions
from fastpsl.engine.train_step import DTYPES, TrainStep
from fastpsl.models.factory import make_backbone
from fastpsl.pipelines.loader.annotated import AnnotatedBatch
from fastpsl.pipelines.views import Input
from fastpsl.transfer.detection.detector import MIN_SCORE, RATIOS, Detector
from fastpsl.transfer.detection.protocols import DetectionProtocol
from fastpsl.transfer.detection.task import Detection

NUM_CLASSES, NUM_OBJECTS = 20, 3
LR = 1e-7  # so small that the weights, and with them the numbers of boxes, stay the same
SIDES = (375, 500)  # the most frequent size in VOC, in either orientation


@dataclass
class Peer:
    """One implementation of the training step.

    Attributes:
        step: Callable that runs a whole training step.
        num_learning: Number of trainable parameters.
        pool: The RoI pooling in front of the head, or None if unknown.
    """

    step: Callable[[], object]
    num_learning: int
    pool: nn.Module | None = None

    def boxes_in_a_step(self) -> int | None:
        """Return the number of boxes that the head reads in a step, or None if it is unknown."""
        if self.pool is None:
            return None
        counts: list[int] = []
        handle = self.pool.register_forward_hook(lambda _, inputs, outputs: counts.append(len(outputs)))
        self.step()
        handle.remove()
        return sum(counts)


def drawn_batches(num: int, batch_size: int, short_px: int, device: torch.device) -> list[AnnotatedBatch]:
    """Return batches of noise images on the device, 3:4 or 4:3 at random, with three objects each.

    Args:
        num: Number of batches.
        batch_size: Images per batch.
        short_px: Shorter side of each image, in px.
        device: Device of images and targets.
    """
    random = np.random.default_rng(0)
    batches = []
    for _ in range(num):
        images, targets = [], []
        for _ in range(batch_size):
            sides = [round(side * short_px / SIDES[0]) for side in SIDES]
            height, width = sides if random.random() < 0.5 else sides[::-1]
            images.append(torch.from_numpy(random.integers(0, 256, (3, height, width), np.uint8)).to(device))
            corners = random.uniform(0, 0.5, (NUM_OBJECTS, 2))
            far = corners + random.uniform(0.2, 0.5, (NUM_OBJECTS, 2))
            boxes = np.concatenate([corners, far], 1) * [width, height, width, height]
            labels = random.integers(1, NUM_CLASSES + 1, NUM_OBJECTS)
            targets.append({
                "boxes": torch.from_numpy(boxes.astype(np.float32)).to(device),
                "labels": torch.from_numpy(labels).to(device)
            })  # fmt: skip
        no_labels = torch.full((batch_size,), -1, device=device)
        batches.append(
            AnnotatedBatch(images, targets, torch.arange(batch_size, device=device), no_labels, 0, 0)
        )
    return batches


def our_train_step(
    protocol: DetectionProtocol, backbone_name: str, options: TrainingOptions, world: World
) -> TrainStep:
    """Return the recipe's training step with random weights.

    The scales of BatchNorm are halved, so that activations do not grow from block to block.
    """
    torch.manual_seed(0)
    backbone = make_backbone(backbone_name)
    for part in backbone.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.constant_(part.weight, 0.5)
    task = Detection(protocol, backbone, Input(), options.seed)
    task.train = cast(Any, SimpleNamespace(num_classes=NUM_CLASSES))
    experiment = Experiment(
        task=task, backbone=backbone, stages=(task.stage(),), schedule=protocol.schedule(options.batch_size),
        optimiser=partial(sgd, weight_decay=protocol.weight_decay, decay_biases=protocol.decay_biases),
        batchnorm=protocol.batchnorm,
    )  # fmt: skip
    place_backbone(experiment, options, world)
    return make_train_step(experiment, 0, options, world)


def ours(train_step: TrainStep, batches: Iterator[AnnotatedBatch]) -> Peer:
    """Return our implementation as a peer."""
    head = train_step.module.head
    assert isinstance(head, Detector)
    pool = cast(nn.Module, head.roi_heads.box_roi_pool)
    return Peer(
        lambda: train_step.step([cast(Any, next(batches))], LR), _num_learning(train_step.module), pool
    )


def torchvisions_model(protocol: DetectionProtocol, backbone_name: str, train_step: TrainStep) -> FasterRCNN:
    """Return torchvision's FasterRCNN with the weights of `train_step`, on its device."""
    blocks, head = train_step.module.blocks, train_step.module.head
    assert isinstance(head, Detector) and head.rpn is not None
    named = torchvision.models.get_model(backbone_name, weights=None, norm_layer=FrozenBatchNorm2d)
    weights = _by_torchvisions_names([*blocks.frozen, *blocks.learning], named)
    named.load_state_dict(weights)
    parts = OrderedDict(
        (name, part) for name, part in named.named_children() if name not in ("avgpool", "fc")
    )
    layer4 = parts.pop("layer4")
    maps = nn.Sequential(parts)
    for name in ("conv1", "layer1")[: protocol.first_learning - 1]:
        parts[name].requires_grad_(False)
    channels, map_channels = named.fc.in_features, named.fc.in_features // 2
    maps.out_channels = map_channels  # type: ignore[assignment]
    before, after = ((train, test) for train, test in zip(protocol.rpn_train, protocol.rpn_test, strict=True))
    model = FasterRCNN(
        maps, min_size=1, _skip_resize=True,
        rpn_anchor_generator=AnchorGenerator((protocol.anchor_px,), (RATIOS,)),
        rpn_head=RPNHead(map_channels, len(RATIOS) * len(protocol.anchor_px)),
        rpn_pre_nms_top_n_train=before[0], rpn_pre_nms_top_n_test=before[1],
        rpn_post_nms_top_n_train=after[0], rpn_post_nms_top_n_test=after[1],
        box_roi_pool=MultiScaleRoIAlign(["0"], protocol.roi_side, 0),
        box_head=nn.Sequential(layer4, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        box_predictor=FastRCNNPredictor(channels, NUM_CLASSES + 1),
        box_score_thresh=MIN_SCORE, box_nms_thresh=protocol.nms, box_batch_size_per_image=protocol.num_rois,
    )  # fmt: skip
    model.rpn.head.load_state_dict(head.rpn.head.state_dict())
    model.roi_heads.box_predictor.load_state_dict(head.roi_heads.box_predictor.state_dict())
    return model.to(train_step.world.device)


def _by_torchvisions_names(blocks: Sequence[nn.Module], named: nn.Module) -> dict[str, Tensor]:
    """Return the blocks' values under torchvision's names, which have the same order, beside its own fc."""
    values = [
        value for block in blocks for name, value in block.state_dict().items() if "num_batches" not in name
    ]
    state = named.state_dict()
    names = [name for name in state if not name.startswith("fc.")]
    assert [state[name].shape for name in names] == [value.shape for value in values]
    return state | dict(zip(names, values, strict=True))


def torchvisions(
    model: FasterRCNN, batches: Iterator[AnnotatedBatch], protocol: DetectionProtocol, precision: str
) -> Peer:
    """Return torchvision's model as a peer with its reference loop: images in [0, 1], plain SGD."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(learning, LR, momentum=0.9, weight_decay=protocol.weight_decay)
    device = learning[0].device
    model.train()

    def losses(batch: AnnotatedBatch) -> dict[str, Tensor]:
        values: dict[str, Tensor] = model([image / 255 for image in batch.images], batch.targets)
        return values

    step = _amp_step(losses, optimiser, batches, precision, device)
    return Peer(step, _num_learning(model), cast(nn.Module, model.roi_heads.box_roi_pool))


def detectron2s(
    batches: Iterator[AnnotatedBatch],
    protocol: DetectionProtocol,
    backbone_name: str,
    precision: str,
    device: torch.device,
) -> Peer:
    """Return Detectron2's model as a peer, with random weights.

    It follows Detectron2's documentation and has not been run yet.

    Raises:
        ValueError: Detectron2 is not installed, or the backbone is too shallow.
    """
    try:
        from detectron2.config import get_cfg
        from detectron2.modeling import build_model
        from detectron2.structures import Boxes, Instances
        from detectron2.utils.events import EventStorage
    except ImportError:
        raise ValueError("Detectron2 is not installed") from None
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = str(device), ""
    cfg.MODEL.RESNETS.DEPTH = int(backbone_name.removeprefix("resnet"))
    if cfg.MODEL.RESNETS.DEPTH < 50:
        raise ValueError("its C4 head is for ResNet-50 and deeper")
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = protocol.num_rois
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = protocol.roi_side
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [list(protocol.anchor_px)]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN, cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = protocol.rpn_train
    model = build_model(cfg)
    model.train()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(learning, LR, momentum=0.9, weight_decay=protocol.weight_decay)

    def losses(batch: AnnotatedBatch) -> dict[str, Tensor]:
        inputs = []
        for image, target in zip(batch.images, batch.targets, strict=True):
            objects = Instances(tuple(image.shape[1:]))
            objects.gt_boxes, objects.gt_classes = Boxes(target["boxes"]), target["labels"] - 1
            inputs.append({"image": image, "instances": objects})
        with EventStorage(0):
            values: dict[str, Tensor] = model(inputs)
        return values

    return Peer(_amp_step(losses, optimiser, batches, precision, device), _num_learning(model))


def _amp_step(
    losses: Callable[[AnnotatedBatch], dict[str, Tensor]],
    optimiser: torch.optim.Optimizer,
    batches: Iterator[AnnotatedBatch],
    precision: str,
    device: torch.device,
) -> Callable[[], None]:
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def step() -> None:
        with torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32"):
            loss = torch.stack(list(losses(next(batches)).values())).sum()
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()

    return step


def _num_learning(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
