"""Faster and Fast R-CNN on the blocks of a backbone, made of torchvision's parts.

The detector is the head of a stage; the stage's backbone is bound to it. ResNets and similar backbones have
Detectron2's C4 layout: B4's maps, RoIs of 14 x 14 positions, B5 on each RoI and the average of its positions.
AlexNet and VGG have B5's maps, RoIs of the size that fc6 reads, fc6 and fc7. Two differences between
torchvision's parts and Detectron2's remain: box losses are L1 with a parabola below 1/9 (Detectron2: L1), and
anchors have integer sides.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import box_iou, roi_align, roi_pool
from typing_extensions import override

from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.models.backbone import Backbone, check_size
from fastpsl.models.convolutional import ALEXNET_SIDE, VGG_SIDE
from fastpsl.transfer.detection.protocols import DetectionProtocol
from fastpsl.transfer.image_input import padded

RATIOS = (0.5, 1.0, 2.0)
RPN_IOUS, RPN_NMS, RPN_SAMPLES, RPN_OBJECTS = (0.7, 0.3), 0.7, 256, 0.5
ROI_IOU, ROI_OBJECTS, BOX_WEIGHTS = 0.5, 0.25, (10.0, 10.0, 5.0, 5.0)
MIN_SCORE, MAX_DETECTIONS = 0.05, 100


class Layout(NamedTuple):
    """The blocks that make the maps, up to `map_block`, and those after it that read each RoI.

    `margin_px` zeros are around an image, so that the first position of the maps is half a stride from the
    image's edge.
    """

    map_block: int
    last_block: int
    reads_vectors: bool  # whether the first of them begins with a max-pool, which RoI pooling replaces
    roi_side: int
    margin_px: int


# AlexNet's margin is 8 px, because its pools are not padded: conv5's first position is at 15.5 px, 8 px too
# far in.
_VECTORS = {"alexnet": (ALEXNET_SIDE, 8), "alexnet_rotnet": (ALEXNET_SIDE, 8), "vgg16": (VGG_SIDE, 0)}


def layout_of(backbone: Backbone, roi_side: int = 14) -> Layout:
    """Return the layout of a backbone; `roi_side` holds where no fc6 fixes it."""
    if backbone.name in _VECTORS:
        return Layout(5, 7, True, *_VECTORS[backbone.name])
    if backbone.num_blocks < 5:
        raise ValueError(
            f"--backbone {backbone.name} has no B5, which detection reads each box by (it has B1 to "
            f"B{backbone.num_blocks}): give a ResNet, RevNet, AlexNet or VGG"
        )
    return Layout(4, 5, False, roi_side, 0)


class Maps(NamedTuple):
    """The maps of a batch."""

    values: Tensor  # [B, C, h, w]
    stride: int  # distance of two positions in px of the padded image


class Detector(nn.Module):
    """The parts of a detector that a backbone lacks.

    `bind` passes it the backbone, which is not registered here a second time. Boxes are float32 [n, 4] = x1
    y1 x2 y2 in px of the input images. Labels are int64 from 1, and 0 is the background.
    """

    def __init__(self, backbone: Backbone, protocol: DetectionProtocol, num_classes: int):
        super().__init__()
        self.layout = layout_of(backbone, protocol.roi_side)
        self.min_background_iou = protocol.min_background_iou
        map_channels, channels = (backbone.channels[i - 1] for i in self.layout[:2])
        self.rpn = None
        if protocol.boxes_from == "rpn":
            anchors = Anchors((protocol.anchor_px,), (RATIOS,), centred=self.layout.reads_vectors)
            nums = zip(protocol.rpn_train, protocol.rpn_test, strict=True)
            before, after = ({"training": train, "testing": test} for train, test in nums)
            self.rpn = RegionProposalNetwork(
                anchors, Float32RPNHead(map_channels, len(RATIOS) * len(protocol.anchor_px)),
                *RPN_IOUS, RPN_SAMPLES, RPN_OBJECTS, before, after, RPN_NMS,
            )  # fmt: skip
        self.norm = nn.BatchNorm2d(channels) if protocol.extra_norm else None
        self.roi_heads = RoIHeads(
            RoIPool(self.layout), None, Float32Predictor(channels, num_classes + 1),
            ROI_IOU, ROI_IOU, protocol.num_rois, ROI_OBJECTS, BOX_WEIGHTS, MIN_SCORE,
            protocol.nms, MAX_DETECTIONS,
        )  # fmt: skip
        self._make_maps: Callable[[Tensor], Tensor] | None = None

    def bind(self, blocks: StageBlocks) -> None:
        """Use a backbone's blocks from now on.

        They are held in closures, because modules would be registered as parts of this one. The blocks that
        read RoIs must be among those that learn.
        """
        cut = self.layout.map_block - len(blocks.frozen)
        assert cut >= 0, "the blocks that read RoIs learn"
        map_blocks, (first, *rest) = list(blocks.learning)[:cut], list(blocks.learning)[cut:]
        first_parts = list(first)[1:] if self.layout.reads_vectors else [first]  # type: ignore[call-overload]
        roi_blocks = [*first_parts, *rest]

        def make_maps(images: Tensor) -> Tensor:
            check_size(min(images.shape[-2:]), blocks.min_px)
            with torch.no_grad():
                images = blocks.run(blocks.frozen_as_run, images)
            return blocks.run(map_blocks, images)

        def read_rois(rois: Tensor) -> Tensor:
            features = blocks.run(roi_blocks, rois)
            return (features if self.norm is None else self.norm(features)).mean((2, 3))

        self._make_maps, self.roi_heads.box_head = make_maps, read_rois

    def losses(
        self,
        images: Sequence[Tensor],
        targets: list[dict[str, Tensor]],
        proposals: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of normalised images, float32 [C, h, w], with "boxes" and "labels" of each.

        Without an RPN, `proposals` has the boxes for each image.
        """
        assert self.training
        maps, shapes = self._maps(images)
        losses: dict[str, Tensor] = {}
        if self.rpn is not None:
            proposals, losses = self.rpn(shapes, {"maps": maps.values}, targets)
        assert proposals is not None
        near = [self._near_objects(boxes, t["boxes"]) for boxes, t in zip(proposals, targets, strict=True)]
        _, roi_losses = self.roi_heads(maps, near, shapes.image_sizes, targets)
        return losses | roi_losses

    def detections(self, image: Tensor, proposals: Tensor | None = None) -> dict[str, Tensor]:
        """Return "boxes", "labels" and "scores" in [0, 1] of a normalised image [C, h, w], by falling score.

        The image is a batch of its own, because the results must not depend on the sizes of neighbours.
        Without an RPN, `proposals` has its boxes.
        """
        assert not self.training
        maps, shapes = self._maps([image])
        boxes = [proposals] if self.rpn is None else self.rpn(shapes, {"maps": maps.values})[0]
        (detections,), _ = self.roi_heads(maps, boxes, shapes.image_sizes)
        return detections  # type: ignore[no-any-return]

    def _maps(self, images: Sequence[Tensor]) -> tuple[Maps, ImageList]:
        assert self._make_maps is not None, "bind() comes first"
        batch = padded(images, margin_px=self.layout.margin_px)
        values = self._make_maps(batch)
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        return Maps(values, stride_of(batch, values)), ImageList(batch, sizes)

    def _near_objects(self, boxes: Tensor, objects: Tensor) -> Tensor:
        """Return the boxes that overlap an object by `min_background_iou`, or all if there is no object."""
        if not self.min_background_iou or not len(objects) or not len(boxes):
            return boxes
        return boxes[box_iou(objects, boxes).amax(0) >= self.min_background_iou]


def stride_of(images: Tensor, maps: Tensor) -> int:
    """Return the stride of maps, a power of two.

    The ratio of the sides is rounded to one. Maps may be a position smaller than the image's side over the
    stride, as AlexNet's are.
    """
    side = 2 if images.shape[2] >= images.shape[3] else 3
    return int(2 ** round(math.log2(images.shape[side] / maps.shape[side])))


class Anchors(AnchorGenerator):
    """A generator of torchvision's anchors, in float32 for maps of any dtype, at `stride_of`."""

    def __init__(self, sizes: tuple[tuple[int, ...]], ratios: tuple[tuple[float, ...]], centred: bool):
        super().__init__(sizes, ratios)
        self.centred = centred

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        (maps,) = feature_maps
        stride = stride_of(image_list.tensors, maps)
        self.set_cell_anchors(torch.float32, maps.device)
        (anchors,) = self.grid_anchors([maps.shape[-2:]], [[stride, stride]])  # type: ignore[list-item]
        offset = stride / 2 if self.centred else 0.0
        return [anchors + offset] * len(image_list.image_sizes)


class Float32RPNHead(RPNHead):
    """An RPN head with float32 outputs.

    Boxes are decoded in the outputs' dtype, and half precision resolves only every second px near 1,333.
    """

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, boxes = super().forward(x)
        return [values.float() for values in logits], [values.float() for values in boxes]


class Float32Predictor(FastRCNNPredictor):
    """A predictor with float32 outputs, for the reason given in `Float32RPNHead`.

    It is initialised as in Detectron2: N(0, .01) for classes, N(0, .001) for boxes, biases 0.
    """

    def __init__(self, channels: int, num_classes: int):
        super().__init__(channels, num_classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, boxes = super().forward(x)
        return scores.float(), boxes.float()


class RoIPool(nn.Module):
    """A pool of RoIs: RoIAlign for maps, Fast R-CNN's max-pooling for vectors.

    RoIAlign is Detectron2's (aligned, with as many samples as positions below it). Boxes are in px of the
    image without its margin, because position i then covers the px from 16 i to 16 i + 16.
    """

    def __init__(self, layout: Layout):
        super().__init__()
        self.layout = layout

    @override
    def forward(self, maps: Maps, boxes: list[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Return [n, C, side, side] for maps [B, C, h, w] and n boxes in all."""
        values, side, scale = maps.values.float(), self.layout.roi_side, 1 / maps.stride
        if self.layout.reads_vectors:
            pooled = roi_pool(values, boxes, side, scale)
        else:
            pooled = roi_align(values, boxes, side, scale, sampling_ratio=0, aligned=True)
        rois: Tensor = pooled.to(maps.values.dtype)
        return rois
