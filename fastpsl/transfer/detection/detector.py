"""Faster and Fast R-CNN on a backbone's blocks, of torchvision's parts: the head of a stage, which the stage's trunk is given to.

With ResNets and their like Detectron2's C4: B4's maps, RoIs of 14 x 14 positions, B5 on each, their average. With AlexNet and VGG B5's
maps, RoIs as fc6 reads them, fc6 and fc7. Where torchvision's parts differ from Detectron2's they stay as they are: box losses are
L1 with a parabola below 1/9 (Detectron2: L1), anchors have whole sides.
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

from fastpsl.engine.trunk import Trunk
from fastpsl.models import alexnet, vgg
from fastpsl.models.backbone import Backbone, check_size
from fastpsl.transfer.detection.protocols import DetectionProtocol
from fastpsl.transfer.image_input import padded

RATIOS = (0.5, 1.0, 2.0)
RPN_IOUS, RPN_NMS, RPN_SAMPLES, RPN_OBJECTS = (0.7, 0.3), 0.7, 256, 0.5
ROI_IOU, ROI_OBJECTS, BOX_WEIGHTS = 0.5, 0.25, (10.0, 10.0, 5.0, 5.0)
MIN_SCORE, MAX_DETECTIONS = 0.05, 100


class Layout(NamedTuple):
    """Which blocks do what: B1 to B`map_block` make the maps, those behind it up to `last_block` read each RoI.

    reads_vectors: the first of them begins with a max-pool, which RoI pooling replaces. roi_side: positions a side of a RoI. margin_px:
    zeros around a picture, so that the maps' first position lies half a stride from its edge.
    """

    map_block: int
    last_block: int
    reads_vectors: bool
    roi_side: int
    margin_px: int


# AlexNet's first position of conv5 lies at 15.5 px, as its pools are not padded: 8 px too far inside.
_VECTORS = {"alexnet": (alexnet.SIDE, 8), "alexnet_rotnet": (alexnet.SIDE, 8), "vgg16": (vgg.SIDE, 0)}


def layout_of(backbone: Backbone, roi_side: int = 14) -> Layout:
    """The parts of a backbone; roi_side: for those that fc6 does not fix. ValueError where it lacks the block that would read the RoIs."""
    if backbone.name in _VECTORS:
        return Layout(5, 7, True, *_VECTORS[backbone.name])
    if backbone.num_blocks < 5:
        raise ValueError(
            f"--backbone {backbone.name} has no B5, which detection reads each box by (it has B1 to B{backbone.num_blocks}): "
            f"give a ResNet, RevNet, AlexNet or VGG"
        )
    return Layout(4, 5, False, roi_side, 0)


class Maps(NamedTuple):
    """values: [B, C, h, w]; stride: px of the padded picture between two positions."""

    values: Tensor
    stride: int


class Detector(nn.Module):
    """What is new on top of a backbone; `bind` gives it the trunk, of which nothing is registered here a second time.

    Boxes are float32 [n, 4] = x1 y1 x2 y2 in px of the pictures handed in, labels int64 from 1 (0 is background).
    """

    def __init__(self, backbone: Backbone, protocol: DetectionProtocol, num_classes: int):
        super().__init__()
        self.layout = layout_of(backbone, protocol.roi_side)
        self.min_background_iou = protocol.min_background_iou
        map_channels, channels = (backbone.channels[i - 1] for i in self.layout[:2])
        self.rpn = None
        if protocol.boxes_from == "rpn":
            anchors = Anchors((protocol.anchor_px,), (RATIOS,), centred=self.layout.reads_vectors)
            kept = zip(protocol.rpn_train, protocol.rpn_test, strict=True)
            before, after = ({"training": train, "testing": test} for train, test in kept)
            self.rpn = RegionProposalNetwork(
                anchors, Float32RPNHead(map_channels, len(RATIOS) * len(protocol.anchor_px)),
                *RPN_IOUS, RPN_SAMPLES, RPN_OBJECTS, before, after, RPN_NMS,
            )  # fmt: skip
        self.norm = nn.BatchNorm2d(channels) if protocol.extra_norm else None
        self.roi_heads = RoIHeads(
            RoIPool(self.layout), None, Float32Predictor(channels, num_classes + 1),
            ROI_IOU, ROI_IOU, protocol.num_rois, ROI_OBJECTS, BOX_WEIGHTS, MIN_SCORE, protocol.nms, MAX_DETECTIONS,
        )  # fmt: skip
        self._make_maps: Callable[[Tensor], Tensor] | None = None

    def bind(self, trunk: Trunk) -> None:
        """Compute with the trunk's blocks from now on: as closures, since modules would become this one's own."""
        cut = self.layout.map_block - len(trunk.frozen)
        assert cut >= 0, "the blocks that read RoIs learn"
        of_map, (first, *rest) = list(trunk.learning)[:cut], list(trunk.learning)[cut:]
        of_rois = [*(list(first)[1:] if self.layout.reads_vectors else [first]), *rest]  # type: ignore[call-overload]

        def make_maps(images: Tensor) -> Tensor:
            check_size(min(images.shape[-2:]), trunk.min_px)
            with torch.no_grad():
                images = trunk.run(trunk.frozen_as_run, images)
            return trunk.run(of_map, images)

        def read_rois(rois: Tensor) -> Tensor:
            features = trunk.run(of_rois, rois)
            return (features if self.norm is None else self.norm(features)).mean((2, 3))

        self._make_maps, self.roi_heads.box_head = make_maps, read_rois

    def losses(
        self,
        images: Sequence[Tensor],
        targets: list[dict[str, Tensor]],
        proposals: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Of normalised pictures float32 [C, h, w] each with "boxes" and "labels", and `proposals` where there is no RPN."""
        assert self.training
        maps, shapes = self._maps(images)
        losses: dict[str, Tensor] = {}
        if self.rpn is not None:
            proposals, losses = self.rpn(shapes, {"maps": maps.values}, targets)
        assert proposals is not None
        near = [self._near_objects(boxes, t["boxes"]) for boxes, t in zip(proposals, targets, strict=True)]
        _, more = self.roi_heads(maps, near, shapes.image_sizes, targets)
        return losses | more

    def detections(self, image: Tensor, proposals: Tensor | None = None) -> dict[str, Tensor]:
        """Of one normalised picture [C, h, w]: "boxes", "labels" and "scores" in [0, 1], by falling score. Alone, as its numbers must not
        depend on its neighbours' sizes."""
        assert not self.training
        maps, shapes = self._maps([image])
        boxes = [proposals] if self.rpn is None else self.rpn(shapes, {"maps": maps.values})[0]
        (found,), _ = self.roi_heads(maps, boxes, shapes.image_sizes)
        return found  # type: ignore[no-any-return]

    def _maps(self, images: Sequence[Tensor]) -> tuple[Maps, ImageList]:
        assert self._make_maps is not None, "bind() comes first"
        batch = padded(images, margin_px=self.layout.margin_px)
        values = self._make_maps(batch)
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        return Maps(values, stride_of(batch, values)), ImageList(batch, sizes)

    def _near_objects(self, boxes: Tensor, objects: Tensor) -> Tensor:
        """Without what overlaps no object by `min_background_iou`; all of them where there is no object."""
        if not self.min_background_iou or not len(objects) or not len(boxes):
            return boxes
        return boxes[box_iou(objects, boxes).amax(0) >= self.min_background_iou]


def stride_of(images: Tensor, maps: Tensor) -> int:
    """A power of two: maps may be a position smaller than pictures over the stride, as AlexNet's are."""
    side = 2 if images.shape[2] >= images.shape[3] else 3
    return int(2 ** round(math.log2(images.shape[side] / maps.shape[side])))


class Anchors(AnchorGenerator):
    """torchvision's, float32 whatever the maps are, at `stride_of`.

    centred: half a stride from the picture's edge on, as Ren et al. have them; else from the edge on, as Detectron2.
    """

    def __init__(self, sizes: tuple[tuple[int, ...]], ratios: tuple[tuple[float, ...]], centred: bool):
        super().__init__(sizes, ratios)
        self.centred = centred

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        (maps,) = feature_maps
        stride = stride_of(image_list.tensors, maps)
        self.set_cell_anchors(torch.float32, maps.device)
        (anchors,) = self.grid_anchors([maps.shape[-2:]], [[stride, stride]])  # type: ignore[list-item]
        return [anchors + stride / 2 * self.centred] * len(image_list.image_sizes)


class Float32RPNHead(RPNHead):
    """Boxes are decoded in its numbers' type, and half precision has one px in two of 1,333."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, boxes = super().forward(x)
        return [one.float() for one in logits], [one.float() for one in boxes]


class Float32Predictor(FastRCNNPredictor):
    """Likewise. First weights as Detectron2's: N(0, .01) of classes, N(0, .001) of boxes, biases 0."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__(channels, num_classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, boxes = super().forward(x)
        return scores.float(), boxes.float()


class RoIPool(nn.Module):
    """RoIAlign as Detectron2's (aligned, as many samples as positions below it) for maps; Fast R-CNN's maximum for vectors.

    Boxes are in px of the picture without its margin, as position i then is of px 16 i to 16 i + 16.
    """

    def __init__(self, layout: Layout):
        super().__init__()
        self.layout = layout

    @override
    def forward(self, maps: Maps, boxes: list[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
        """[B, C, h, w] and n boxes in all to [n, C, side, side]."""
        values, side, scale = maps.values.float(), self.layout.roi_side, 1 / maps.stride
        if self.layout.reads_vectors:
            pooled = roi_pool(values, boxes, side, scale)
        else:
            pooled = roi_align(values, boxes, side, scale, sampling_ratio=0, aligned=True)
        made: Tensor = pooled.to(maps.values.dtype)
        return made
