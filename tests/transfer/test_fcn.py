"""Test FCN's networks: fully-connected layers as convolutions, the published upsampling, and dilation."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from fastpsl.engine.plan import Stage
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.models import convolutional
from fastpsl.models.backbone import Backbone
from fastpsl.models.convolutional import VGG, AlexNet
from fastpsl.models.factory import make_backbone
from fastpsl.transfer.segmentation.fcn import DilatedFCN, FCN32s, as_convolution, dilate, laid_out, network_of
from tests.slow import slow


def with_fc(name: str) -> Backbone:
    """Return a backbone with small fc6 and fc7, and with BatchNorms that have trained statistics."""
    backbone = VGG(fc_width=24) if name == "vgg16" else AlexNet(name, fc_width=24)
    randomised(backbone)
    random = torch.Generator().manual_seed(0)
    for part in backbone.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5, generator=random)
            if part.bias is not None:
                part.bias.data.uniform_(-0.5, 0.5, generator=random)
    return backbone


def randomised(network: nn.Module) -> None:
    """Set running statistics other than 0 and 1."""
    random = torch.Generator().manual_seed(0)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            assert part.running_mean is not None and part.running_var is not None
            part.running_mean.normal_(std=0.1, generator=random)
            part.running_var.uniform_(0.5, 1.5, generator=random)


def blocks_of(backbone: Backbone, last_block: int) -> StageBlocks:
    return StageBlocks(backbone, Stage("segmentation", 1, 1, last_block, 1))


def fc_blocks(backbone: Backbone, maps: Tensor, convolution: bool) -> Tensor:
    for block in backbone.blocks()[5:]:
        maps = as_convolution(block, maps) if convolution else block(maps)
    return maps


@pytest.mark.parametrize("name", ["alexnet", "alexnet_rotnet", "vgg16"])
def test_fc_as_convolution_is_the_linear_layer(name: str) -> None:
    """Compare values and gradients of all parameters and maps, for maps of one window."""
    backbone = with_fc(name).eval()
    side = 14 if name == "vgg16" else 13
    inputs = torch.randn(3, backbone.channels[4], side, side, generator=torch.Generator().manual_seed(1))
    results = []
    for convolution in (False, True):
        backbone.zero_grad()
        maps = inputs.clone().requires_grad_()
        output = fc_blocks(backbone, maps, convolution)
        assert output.shape == (3, 24, 1, 1) and output.abs().max() > 0.1
        (output * torch.arange(24.0)[None, :, None, None]).sum().backward()
        assert maps.grad is not None
        gradients = [p.grad for p in backbone.parameters() if p.grad is not None]
        results.append([output.detach(), maps.grad, *gradients])
    assert len(results[0]) == len(results[1]) >= 6
    for result, expected in zip(*results, strict=True):
        assert torch.allclose(result, expected, rtol=1e-4, atol=1e-4 * float(result.abs().max()))


def test_fc_as_convolution_sees_every_window_of_a_larger_map() -> None:
    backbone = with_fc("alexnet_rotnet").eval()
    maps = torch.randn(2, 256, 17, 19)  # pooled to 8 x 9, which has 3 x 4 windows of 6
    output = fc_blocks(backbone, maps, True)
    assert output.shape == (2, 24, 3, 4)
    for y, x in ((0, 0), (2, 3), (1, 2)):
        part = maps[:, :, 2 * y : 2 * y + 13, 2 * x : 2 * x + 13]
        assert torch.allclose(output[:, :, y, x], fc_blocks(backbone, part, False)[:, :, 0, 0], atol=1e-4)


def test_batchnorm_of_fc_is_over_images_and_positions() -> None:
    backbone = with_fc("alexnet_rotnet").train()
    linear, norm, _ = backbone.classifier[:3]  # type: ignore[index]
    maps = torch.randn(2, 256, 15, 13)
    pooled = F.max_pool2d(maps, 3, 2)
    expected = F.conv2d(pooled, linear.weight.view(24, 256, 6, 6))
    mean, var = expected.mean((0, 2, 3)), expected.var((0, 2, 3), unbiased=False)
    expected = ((expected - mean[:, None, None]) / (var[:, None, None] + norm.eps).sqrt()).relu()
    before = norm.running_mean.clone()
    output = as_convolution(backbone.blocks()[5], maps)
    assert output.shape == (2, 24, 2, 1) and torch.allclose(output, expected, atol=1e-4)
    assert torch.allclose(norm.running_mean, 0.9 * before + 0.1 * mean, atol=1e-5)


def published_layout(scores: Tensor, height: int, width: int, kernel: int, offset: int) -> Tensor:
    """Run the fixed deconvolution of the published nets and its crop."""
    classes = scores.shape[1]
    places = torch.arange(kernel, dtype=torch.float32)
    line = 1 - (places - (kernel - 1) / 2).abs() / 32
    weight = (line[:, None] * line)[None, None].repeat(classes, 1, 1, 1)
    spread = F.conv_transpose2d(scores, weight, stride=32, groups=classes)
    return spread[:, :, offset : offset + height, offset : offset + width]


@pytest.mark.parametrize(("first_px", "kernel", "offset"), [(13.0, 63, 18), (12.5, 64, 19)])
def test_scores_are_laid_out_as_by_the_published_deconvolution(
    first_px: float, kernel: int, offset: int
) -> None:
    scores = torch.randn(2, 3, 4, 5)
    height, width = 108, 139  # the last middles are 109 and 141
    result = laid_out(scores, height, width, first_px)
    assert torch.allclose(result, published_layout(scores, height, width, kernel, offset), atol=1e-5)
    assert laid_out(scores[:0], 7, 9, first_px).shape == (0, 3, 7, 9)


@pytest.mark.parametrize("name", ["alexnet", "alexnet_rotnet", "vgg16"])
@pytest.mark.parametrize("size", [(1, 33), slow((27, 28)), slow((59, 91))])
def test_every_pixel_is_reached_and_no_row_of_the_padded_image_is_left_over(
    name: str, size: tuple[int, int]
) -> None:
    """There are as many scores as in the published net, or one more where its conv1 leaves out some rows."""
    backbone = with_fc(name).eval()
    network = network_of(backbone, auxiliary=False)
    assert isinstance(network, FCN32s)
    head = network.head(4)
    blocks = blocks_of(backbone, 7).eval()
    (zeros,) = network.scores(blocks, head, torch.randn(1, 3, *size))
    assert not zeros.any()  # because it is initialised with zeros
    nn.init.ones_(head.bias)  # type: ignore[arg-type]
    sizes: list[tuple[int, ...]] = []
    head.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-2:]))
    with torch.no_grad():
        (scores,) = network.scores(blocks, head, torch.randn(2, 3, *size))
    assert scores.shape == (2, 4, *size) and float(scores.min()) > 0.3
    if name == "vgg16":
        # Convolutions keep the sides. Pools round up, and fc6 takes the last ones.
        sides = [-(-(side + 198) // 32) - 6 for side in size]
        assert list(sizes[0]) == sides
    else:
        expected = []
        for side in size:
            maps = (side + 200 - 11) // 4 + 1
            for _ in range(3):
                maps = -(-(maps - 3) // 2) + 1
            expected.append(maps - 5 + ((side + 5) % 32 in (1, 2, 3)))
        assert list(sizes[0]) == expected


def test_the_first_scores_middle_is_where_its_pixels_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers average here, so that the gradient of a score by the image is centred on its middle."""
    monkeypatch.setattr(convolutional, "GROUPS", tuple((2, count) for _, count in convolutional.GROUPS))
    monkeypatch.setitem(convolutional.WIDTHS, "alexnet", (2,) * 5)
    for name, first_px in (("alexnet", 13.0), ("vgg16", 12.5)):
        backbone = with_fc(name).eval().double()
        for part in backbone.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.constant_(part.weight, 1 / part.weight[0].numel())
                assert part.bias is not None
                nn.init.zeros_(part.bias)
            elif isinstance(part, nn.BatchNorm2d):
                part.reset_running_stats()
            elif isinstance(part, nn.Sequential):
                for place, layer in enumerate(part):
                    if isinstance(layer, nn.MaxPool2d):
                        part[place] = nn.AvgPool2d(layer.kernel_size, layer.stride)
                    elif isinstance(layer, nn.ReLU):
                        part[place] = nn.Identity()
        network = network_of(backbone, auxiliary=False)
        assert isinstance(network, FCN32s) and network.first_px == first_px
        head = network.head(1).double()
        nn.init.ones_(head.weight)  # type: ignore[arg-type]
        outputs: list[Tensor] = []
        head.register_forward_hook(lambda module, inputs, output, outputs=outputs: outputs.append(output))
        image = torch.zeros(1, 3, 480, 9, dtype=torch.float64, requires_grad=True)
        network.scores(blocks_of(backbone, 7).eval(), head, image)
        outputs[0][0, 0, 7, 0].backward()
        assert image.grad is not None
        weights = image.grad[0].sum((0, 2))
        middle = float((weights * torch.arange(480)).sum() / weights.sum())
        assert middle == pytest.approx(first_px + 32 * 7, abs=0.05)


@pytest.mark.usefixtures("published_widths")
def test_dilated_resnet_50_with_heads_is_torchvisions_fcn() -> None:
    """Compare the scores of both heads with equal weights, in train and in eval mode."""
    model = torchvision.models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=4, aux_loss=True
    )
    randomised(model)
    backbone = make_backbone("resnet50")
    names = list(backbone.state_dict())
    backbone.load_state_dict(model.backbone.state_dict())
    network = network_of(backbone, auxiliary=True)
    assert isinstance(network, DilatedFCN) and list(backbone.state_dict()) == names
    head, blocks = network.head(4), blocks_of(backbone, network.last_block)
    assert isinstance(head, nn.ModuleList)
    head[0].load_state_dict(model.classifier.state_dict())
    head[1].load_state_dict(model.aux_classifier.state_dict())
    for module in (model, blocks, head):
        module.double()  # because scores are up to 30 and are upsampled in float32
    images = torch.randn(2, 3, 65, 82, dtype=torch.float64)
    for training in (False, True):
        for module in (model, blocks, head):
            module.train(training)
        torch.manual_seed(0)
        expected = model(images)
        torch.manual_seed(0)
        scores = network.scores(blocks, head, images)
        assert torch.allclose(scores[0], expected["out"].float(), atol=1e-4)
        assert torch.allclose(scores[1], expected["aux"].float(), atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet18_cifar", "revnet50"])
def test_dilated_maps_hold_those_of_the_backbone(name: str) -> None:
    """Compare every fourth position, with odd sides, and with basic blocks, which torchvision refuses."""
    torch.manual_seed(0)
    strided = make_backbone(name).eval()
    randomised(strided)
    dilated = copy.deepcopy(strided)
    dilate(dilated)
    assert list(dilated.state_dict()) == list(strided.state_dict())
    with torch.no_grad():
        images = torch.randn(1, 3, 61, 40)
        maps, expected = dilated(images), strided(images)
    every_fourth = maps[:, :, ::4, ::4]
    assert maps.shape[-1] > expected.shape[-1] and every_fourth.shape == expected.shape
    assert torch.allclose(every_fourth, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_what_has_no_strides_stays_as_it_is() -> None:
    backbone = make_backbone("nin5").eval()
    images = torch.randn(1, 3, 32, 48)
    before = backbone(images)
    network = network_of(backbone, auxiliary=True)
    assert torch.equal(backbone(images), before)
    scores = network.scores(blocks_of(backbone, 5).eval(), network.head(3).eval(), images)
    assert [tuple(s.shape) for s in scores] == [(1, 3, 32, 48)] * 2


@pytest.mark.parametrize("name", ["nin3", "nin4"])
def test_a_backbone_without_b5_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"--backbone {name}: .*B5.*this one has B1 to B"):
        network_of(make_backbone(name), auxiliary=False)


def test_a_hidden_layer_behind_b5_is_left_out() -> None:
    assert network_of(make_backbone("resnet50_mlp"), auxiliary=False).last_block == 5
