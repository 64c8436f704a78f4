"""Test the detector against torchvision's FasterRCNN, and Fast R-CNN's arithmetic in plain loops."""

import copy
import itertools
import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign, box_iou, roi_align, roi_pool
from typing_extensions import override

from fastpsl.engine.plan import Stage
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.engine.train_step import StageModule
from fastpsl.models.backbone import Backbone
from fastpsl.models.convolutional import VGG, AlexNet
from fastpsl.models.factory import make_backbone
from fastpsl.models.resnet import ResNet
from fastpsl.transfer.detection.detector import (
    Anchors,
    Detector,
    Float32Predictor,
    Float32RPNHead,
    Maps,
    RoIPool,
    layout_of,
    stride_of,
)
from fastpsl.transfer.detection.protocols import PROTOCOLS, DetectionProtocol
from fastpsl.transfer.image_input import padded
from tests.engine.tiny import TinyNet

SMALL = replace(PROTOCOLS["pirl"], anchor_px=(16, 32, 64), num_rois=12, roi_side=7)
FAST = replace(PROTOCOLS["fast_rcnn"], num_rois=999)


def bound(
    backbone: Backbone, protocol: DetectionProtocol, num_classes: int = 3
) -> tuple[StageBlocks, Detector]:
    last = layout_of(backbone).last_block
    stage = Stage("d", 1, protocol.first_learning, last, 0, 1)
    blocks = StageBlocks(backbone, stage, batchnorm=protocol.batchnorm)
    detector = Detector(backbone, protocol, num_classes)
    detector.bind(blocks)
    return blocks, detector


def resnet18() -> Backbone:
    """Return a ResNet-18 with random running statistics and scales."""
    torch.manual_seed(0)
    backbone = ResNet("resnet18")
    for part in backbone.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(part.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(part.weight, 0.2, 0.6)
    return backbone


class AlignedPool(nn.Module):
    @override
    def forward(
        self, features: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]
    ) -> Tensor:
        return roi_align(features["0"], boxes, 7, 1 / 16, sampling_ratio=0, aligned=True)


def torchvisions(backbone: Backbone, detector: Detector) -> FasterRCNN:
    """Return torchvision's whole model with copies of the same weights."""
    *below, last = copy.deepcopy(backbone).blocks()
    maps = nn.Sequential(*below)
    maps.out_channels = backbone.channels[3]  # type: ignore[assignment]
    box_head = nn.Sequential(last, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = FasterRCNN(
        maps, rpn_anchor_generator=AnchorGenerator(((16, 32, 64),), ((0.5, 1.0, 2.0),)),
        rpn_head=RPNHead(backbone.channels[3], 9), box_roi_pool=MultiScaleRoIAlign(["0"], 7, 0),
        box_head=box_head, box_predictor=FastRCNNPredictor(backbone.channels[4], 4),
        rpn_pre_nms_top_n_train=12_000, rpn_post_nms_top_n_train=2000, rpn_pre_nms_top_n_test=6000,
        rpn_post_nms_top_n_test=1000, box_batch_size_per_image=12, _skip_resize=True, min_size=112,
        image_mean=[0.0] * 3, image_std=[1.0] * 3,
    )  # fmt: skip
    model.roi_heads.box_roi_pool = AlignedPool()  # because torchvision's own boxes are half a position off
    assert detector.rpn is not None
    model.rpn.head.load_state_dict(detector.rpn.head.state_dict())
    model.roi_heads.box_predictor.load_state_dict(detector.roi_heads.box_predictor.state_dict())
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    return model


def images_and_targets() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    torch.manual_seed(5)
    images = [torch.randn(3, 112, 128), torch.randn(3, 100, 90)]
    targets = [
        {"boxes": torch.tensor([[10.0, 12, 60, 70], [50, 40, 120, 100]]), "labels": torch.tensor([1, 3])},
        {"boxes": torch.empty(0, 4), "labels": torch.empty(0, dtype=torch.int64)},
    ]
    return images, targets


def test_c4_learns_as_torchvisions_model_on_the_same_weights() -> None:
    backbone = resnet18()
    _, detector = bound(backbone, SMALL)
    model = torchvisions(backbone, detector)
    images, targets = images_and_targets()
    torch.manual_seed(7)  # for the samplers
    losses = detector.losses(images, targets)
    torch.manual_seed(7)
    expected = model([image.clone() for image in images], targets)
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert torch.allclose(losses[name], value, rtol=1e-5), name
        assert value > 0
    sum(losses.values()).backward()  # type: ignore[union-attr]
    sum(expected.values()).backward()
    assert detector.rpn is not None
    net: Any = backbone
    heads, expected_heads = detector.roi_heads.box_predictor, model.roi_heads.box_predictor
    pairs = {
        "B3": (net.layer2[0].conv1, model.backbone[2][0].conv1),  # type: ignore[index, union-attr]
        "B4": (net.layer3[1].conv2, model.backbone[3][1].conv2),  # type: ignore[index, union-attr]
        "B5": (net.layer4[1].conv2, model.roi_heads.box_head[0][1].conv2),  # type: ignore[index, union-attr]
        "RPN": (detector.rpn.head.conv[0][0], model.rpn.head.conv[0][0]),
        "classes": (heads.cls_score, expected_heads.cls_score),
        "boxes": (heads.bbox_pred, expected_heads.bbox_pred),
    }
    for name, layers in pairs.items():
        gradient, expected_gradient = (layer.weight.grad for layer in layers)
        largest = float(expected_gradient.abs().max())
        assert largest > 0 and torch.allclose(gradient, expected_gradient, atol=1e-4 * largest), name
    assert net.conv1.weight.grad is None and net.layer1[0].conv1.weight.grad is None


def test_c4_detects_as_torchvisions_model_on_the_same_weights() -> None:
    backbone = resnet18()
    blocks, detector = bound(backbone, SMALL)
    nn.init.normal_(detector.roi_heads.box_predictor.cls_score.weight, std=0.5)  # because it detects then
    model = torchvisions(backbone, detector).eval()
    detector.eval()
    blocks.eval()
    (image, _), _ = images_and_targets()
    with torch.no_grad():
        result = detector.detections(image)
        (expected,) = model([image])
    assert len(expected["boxes"]) > 5
    rows, expected_rows = (
        torch.cat([all_of["boxes"], all_of["scores"][:, None], all_of["labels"][:, None].float()], 1)
        for all_of in (result, expected)
    )
    same = torch.cdist(rows, expected_rows, p=torch.inf) < 1e-3  # because nearly equal scores may swap
    assert len(rows) == len(expected_rows) and same.any(0).all() and same.any(1).all()


def test_nothing_of_the_blocks_is_the_detectors_too() -> None:
    blocks, detector = bound(TinyNet(), PROTOCOLS["moco"])
    module = StageModule(blocks, detector, None)  # type: ignore[arg-type]
    names = {name for name, _ in detector.named_parameters()}
    assert {name.split(".")[0] for name in names} == {"rpn", "norm", "roi_heads"}
    assert not any("box_head" in name for name in names)
    learned = [parameter for _, parameter in module.learning_parameters()]
    assert len(learned) == len({id(parameter) for parameter in learned})
    state = detector.state_dict()
    detector.load_state_dict(state)


def alexnet() -> Backbone:
    torch.manual_seed(0)
    return AlexNet(fc_width=32, dropout=0.0)


def test_alexnet_learns_as_fast_r_cnn_in_plain_loops() -> None:
    """Every RoI is sampled: with an overlap of .5 it is foreground, with .1 background, else left out."""
    backbone = alexnet()
    _, detector = bound(backbone, FAST)
    nn.init.normal_(detector.roi_heads.box_predictor.bbox_pred.weight, std=0.1)
    images, targets = images_and_targets()
    image, target = images[0], targets[0]
    rows = [[12.0, 10, 62, 66], [0, 0, 40, 40], [90, 0, 128, 20], [60, 50, 118, 96], [30, 30, 90, 90]]
    proposals = torch.tensor(rows)
    losses = detector.losses([image], [target], [proposals])
    assert set(losses) == {"loss_classifier", "loss_box_reg"}

    canvas = torch.zeros(1, 3, 128, 160)  # multiples of 32 that hold 8 px around 112 x 128
    canvas[0, :, 8:120, 8:136] = image
    *convolutions, fc6, fc7 = backbone.blocks()
    maps = canvas
    for block in convolutions:
        maps = block(maps)
    overlaps = box_iou(target["boxes"], torch.cat([proposals, target["boxes"]]))
    boxes, classes, deltas = [], [], []
    for place, box in enumerate(torch.cat([proposals, target["boxes"]])):
        overlap, which = overlaps[:, place].max(0)
        if overlap < 0.1:
            continue
        truth = target["boxes"][which]
        size, true_size = box[2:] - box[:2], truth[2:] - truth[:2]
        moved = 10 * ((truth[:2] + truth[2:]) / 2 - (box[:2] + box[2:]) / 2) / size
        boxes.append(box)
        deltas.append(torch.cat([moved, 5 * torch.log(true_size / size)]))
        classes.append(int(target["labels"][which]) if overlap >= 0.5 else 0)
    assert len(classes) == 6 and sorted(classes) == [0, 0, 1, 1, 3, 3]
    rois = roi_pool(maps, [torch.stack(boxes)], 6, 1 / 16)
    scores, moves = detector.roi_heads.box_predictor(fc7(nn.Sequential(*list(fc6)[2:])(rois)))  # type: ignore[call-overload]
    total = torch.zeros(())
    for i, label in enumerate(classes):
        if label:
            off = (moves[i].view(4, 4)[label] - deltas[i]).abs()
            total = total + torch.where(off < 1 / 9, 0.5 * off**2 * 9, off - 1 / 18).sum()
    assert torch.allclose(losses["loss_box_reg"], total / 6, rtol=1e-4)
    expected = -sum(F.log_softmax(scores[i], 0)[label] for i, label in enumerate(classes)) / 6
    assert torch.allclose(losses["loss_classifier"], expected, rtol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("num", [0, 1])
def test_hardly_any_proposals_are_no_error(num: int) -> None:
    blocks, detector = bound(alexnet(), FAST)
    images, targets = images_and_targets()
    losses = detector.losses(images[:1], targets[:1], [torch.tensor([[0.0, 0, 30, 30]])[:num]])
    assert all(bool(torch.isfinite(value)) for value in losses.values())
    blocks.eval()
    detector.eval()
    detections = detector.detections(images[0], torch.tensor([[0.0, 0, 30, 30]])[:num])
    assert detections["boxes"].shape[1] == 4 and (num or not len(detections["boxes"]))


def test_an_image_that_the_network_cannot_read_is_refused() -> None:
    """Padded to multiples of 32 with 8 px around it, an image of 16 px has 32 px, and one of 17 has 64."""
    blocks, detector = bound(alexnet(), FAST)
    blocks.eval()
    detector.eval()
    box = torch.tensor([[0.0, 0, 12, 12]])
    detector.detections(torch.zeros(3, 17, 40), box)
    with pytest.raises(ValueError, match=f"{blocks.min_px} px"):
        detector.detections(torch.zeros(3, 16, 40), box)


def test_images_without_objects_keep_all_proposals() -> None:
    _, detector = bound(alexnet(), FAST)
    proposals = torch.tensor([[0.0, 0, 30, 30], [5, 5, 9, 9]])
    assert torch.equal(detector._near_objects(proposals, torch.empty(0, 4)), proposals)
    assert len(detector._near_objects(proposals, torch.tensor([[0.0, 0, 30, 20]]))) == 1


def test_an_overlap_of_exactly_the_least_is_a_background() -> None:
    """Fast R-CNN takes backgrounds from the least overlap on; here the overlaps are 1/4 and 1/8."""
    _, detector = bound(alexnet(), replace(FAST, min_background_iou=0.25))
    boxes, objects = torch.tensor([[0.0, 0, 8, 2], [0, 0, 8, 1]]), torch.tensor([[0.0, 0, 8, 8]])
    assert detector._near_objects(boxes, objects).tolist() == boxes[:1].tolist()


@pytest.mark.parametrize("name", ["alexnet", "alexnet_rotnet", "vgg16"])
def test_first_position_lies_half_a_stride_from_the_images_edge(name: str) -> None:
    """Compute the position from kernels, strides and paddings."""
    backbone: Backbone = VGG(fc_width=8) if name == "vgg16" else AlexNet(name, fc_width=8)
    layout = layout_of(backbone)
    jump, first = 1, 0.5  # px, from the middles of pixels
    for block in backbone.blocks()[: layout.map_block]:
        for part in block.modules():
            if isinstance(part, nn.Conv2d | nn.MaxPool2d):
                kernel, stride, padding = (
                    value[0] if isinstance(value, tuple) else value
                    for value in (part.kernel_size, part.stride, part.padding)
                )
                first += ((kernel - 1) / 2 - padding) * jump  # type: ignore[operator]
                jump *= stride  # type: ignore[assignment]
    assert jump == 16
    assert abs(first - layout.margin_px - jump / 2) <= 0.5


@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_rois_begin_at_the_position_that_lies_there(name: str) -> None:
    """Position i covers px 16 i to 16 i + 16; a box from 32 to 128 is 2 to 8 by Fast R-CNN's rounding."""
    backbone: Backbone = VGG(fc_width=8) if name == "vgg16" else AlexNet(name, fc_width=8)
    numbers, pool = torch.arange(12.0).expand(1, 1, 12, 12).contiguous(), RoIPool(layout_of(backbone))
    box = torch.tensor([[32.0, 32, 128, 128]])
    least, most = (pool(Maps(sign * numbers, 16), [box], [(192, 192)]).max() for sign in (-1, 1))
    assert (-float(least), float(most)) == (2.0, 8.0)


@pytest.mark.parametrize(
    ("name", "px"),
    [("alexnet", (96, 128)), ("alexnet", (600, 1000)), ("vgg16", (64, 96)), ("resnet18", (64, 65))],
)
def test_stride_is_16(name: str, px: tuple[int, int]) -> None:
    backbones = {
        "alexnet": partial(AlexNet, fc_width=8),
        "vgg16": partial(VGG, fc_width=8),
        "resnet18": partial(ResNet, "resnet18"),
    }
    backbone: Backbone = backbones[name]().to("meta")  # type: ignore[operator]
    layout = layout_of(backbone)
    batch = padded([torch.zeros(3, *px)], margin_px=layout.margin_px).to("meta")
    maps = batch
    for block in backbone.blocks()[: layout.map_block]:
        maps = block(maps)
    assert stride_of(batch, maps) == 16
    # Every px of the image is within a stride of a position.
    assert 16 * min(maps.shape[2] - px[0] / 16, maps.shape[3] - px[1] / 16) >= -8


def test_anchors_are_float32_at_true_strides() -> None:
    images = ImageList(torch.zeros(2, 3, 128, 160), [(128, 160), (100, 90)])
    maps = torch.zeros(2, 8, 7, 9, dtype=torch.float16)  # because AlexNet's maps are smaller than 8 x 10
    for centred, start in ((False, 0.0), (True, 8.0)):
        anchors = Anchors(((32, 64),), ((0.5, 1.0, 2.0),), centred)(images, [maps])
        assert len(anchors) == 2 and anchors[0].dtype == torch.float32
        boxes = anchors[0].view(7, 9, 6, 4)
        middles = (boxes[..., :2] + boxes[..., 2:]) / 2
        assert torch.equal(middles[2, 5, 1], torch.tensor([5 * 16 + start, 2 * 16 + start]))
        sides = boxes[0, 0, :, 2:] - boxes[0, 0, :, :2]
        shapes = itertools.product((0.5, 1.0, 2.0), (32, 64))
        for (width, height), (ratio, side) in zip(sides.tolist(), shapes, strict=True):
            assert abs(height / width - ratio) < 0.1 and abs(math.sqrt(width * height) - side) < 1.5


def test_values_are_the_published_ones() -> None:
    """Compare with Detectron2's Base-RCNN-C4 and defaults."""
    _, detector = bound(TinyNet(), PROTOCOLS["pirl"], 20)
    rpn, heads = detector.rpn, detector.roi_heads
    assert rpn is not None and rpn.anchor_generator.sizes == ((32, 64, 128, 256, 512),)
    assert rpn.anchor_generator.aspect_ratios == ((0.5, 1.0, 2.0),)
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n()) == (12_000, 2000)
    detector.eval()
    assert (rpn.pre_nms_top_n(), rpn.post_nms_top_n(), rpn.nms_thresh) == (6000, 1000, 0.7)
    assert (rpn.fg_bg_sampler.batch_size_per_image, rpn.fg_bg_sampler.positive_fraction) == (256, 0.5)
    assert (rpn.proposal_matcher.high_threshold, rpn.proposal_matcher.low_threshold) == (0.7, 0.3)
    assert (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction) == (512, 0.25)
    assert (heads.proposal_matcher.high_threshold, heads.proposal_matcher.low_threshold) == (0.5, 0.5)
    assert heads.box_coder.weights == (10, 10, 5, 5)
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)
    assert layout_of(TinyNet()).roi_side == 14 and layout_of(alexnet()).roi_side == 6
    for layer, num, std in (
        (heads.box_predictor.cls_score, 21, 0.01), (heads.box_predictor.bbox_pred, 84, 0.001),
    ):  # fmt: skip
        assert layer.out_features == num and not layer.bias.any()
        assert np.isclose(float(layer.weight.detach().std()), std, rtol=0.2)


def test_boxes_and_scores_are_float32_under_autocast() -> None:
    """Half precision would place boxes on every second px near 1,333."""
    with torch.autocast("cpu", torch.bfloat16):
        logits, boxes = Float32RPNHead(8, 3)([torch.randn(1, 8, 4, 4)])
        scores, moves = Float32Predictor(8, 5)(torch.randn(2, 8))
    assert {each.dtype for each in (*logits, *boxes, scores, moves)} == {torch.float32}


@pytest.mark.parametrize("name", ["vgg16", "resnet18"])
def test_maps_in_half_precision_are_pooled_as_their_values_in_float32(name: str) -> None:
    """torchvision refuses maps of another dtype than the boxes'. The RoIs are in that of the maps."""
    pool = RoIPool(layout_of(make_backbone(name)))
    values, box = torch.randn(1, 2, 12, 12).bfloat16(), torch.tensor([[3.25, 5.5, 120.0, 90.75]])
    rois = pool(Maps(values, 16), [box], [(192, 192)])
    expected = pool(Maps(values.float(), 16), [box], [(192, 192)])
    assert rois.dtype == torch.bfloat16 and torch.equal(rois, expected.bfloat16())


def test_fixed_batchnorm_and_frozen_blocks_stay_bit_for_bit() -> None:
    backbone = resnet18()
    before = copy.deepcopy(backbone.state_dict())
    blocks, detector = bound(backbone, SMALL)
    images, targets = images_and_targets()
    module = StageModule(blocks, detector, None)  # type: ignore[arg-type]
    module.train()
    parameters = [p for _, p in module.learning_parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=0.1, weight_decay=1e-2)
    for _ in range(2):
        sum(detector.losses(images, targets).values()).backward()  # type: ignore[union-attr]
        optimiser.step()
    changed = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    convolutions = {f"{n}.weight" for n, part in backbone.named_modules() if isinstance(part, nn.Conv2d)}
    assert changed == {name for name in convolutions if not name.startswith(("conv1", "layer1"))}


def test_extra_norm_stands_behind_the_last_block_and_moves() -> None:
    _, detector = bound(TinyNet(), replace(PROTOCOLS["moco"], num_rois=8))
    images, targets = images_and_targets()
    detector.losses(images, targets)
    assert detector.norm is not None and detector.norm.num_features == 16
    assert int(detector.norm.num_batches_tracked) == 1 and bool((detector.norm.running_mean != 0).any())  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("name", ["nin3", "nin4"])
def test_a_backbone_without_the_block_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"--backbone {name} has no B5"):
        layout_of(make_backbone(name))


@pytest.mark.parametrize("name", ["resnet50_mlp", "revnet50", "resnet18_cifar", "nin5"])
def test_others_are_read_by_b5(name: str) -> None:
    layout = layout_of(make_backbone(name))
    assert (layout.map_block, layout.last_block, layout.roi_side, layout.margin_px) == (4, 5, 14, 0)
