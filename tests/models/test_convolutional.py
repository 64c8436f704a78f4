"""AlexNet, VGG, NIN and the layers that they share, compared with torchvision and the published code."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from fastpsl.engine.plan import PLANS, Stage, make_plan
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.models.convolutional import (
    NIN,
    NUM_BLOCKS,
    VGG,
    WIDTHS,
    AlexNet,
    AveragePool,
    convolutions,
    mean_of_positions,
)
from fastpsl.models.factory import make_backbone
from tests.engine.steps import snapshot
from tests.engine.tiny import noise_batch
from tests.models.test_backbones import train_step, views
from tests.slow import slow

SIDES = (55, 27, 13, 13, 13, 1, 1)


def small(name: str, **options: float) -> AlexNet:
    """Build a network with fc6 and fc7 of width 32 and with BatchNorms as after training."""
    torch.manual_seed(0)
    network = AlexNet(name, fc_width=32, **options)  # type: ignore[arg-type]
    for part in network.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            assert part.running_mean is not None and part.running_var is not None
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
    return network


@pytest.mark.usefixtures("published_widths")
@pytest.mark.parametrize("name", WIDTHS)
def test_parameters_are_the_originals(name: str) -> None:
    with torch.device("meta"):
        network = AlexNet(name)
    one, two, three, four, five = WIDTHS[name]
    convolutions = 121 * 3 * one + 25 * one * two + 9 * (two * three + three * four + four * five)
    fc = 9216 * 4096 + 4096 * 4096
    biases, norms = sum(WIDTHS[name]), 2 * sum(WIDTHS[name])
    behind_fc = 2 * 4096 if name == "alexnet" else 2 * 2 * 4096  # biases, or BatchNorms' scales and shifts
    expected = convolutions + biases + norms + fc + behind_fc
    assert expected == {"alexnet": 58_284_096, "alexnet_rotnet": 57_014_336}[name]
    assert sum(p.numel() for p in network.parameters()) == expected
    assert network.channels == (*WIDTHS[name], 4096, 4096) and network.num_blocks == 7


def test_names_are_deepclusters() -> None:
    """Pools follow the first, second and fifth convolution, and the classifier starts with dropout."""
    with torch.device("meta"):
        names = set(AlexNet().state_dict())
    expected = {f"features.{i}.{part}" for i in (0, 4, 8, 11, 14) for part in ("weight", "bias")}
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected |= {f"features.{i + 1}.{part}" for i in (0, 4, 8, 11, 14) for part in norm}
    expected |= {f"classifier.{i}.{part}" for i in (1, 4) for part in ("weight", "bias")}
    assert names == expected


@torch.no_grad()
@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize("side", [224, 97])
def test_blocks_compute_the_networks_definition(name: str, side: int) -> None:
    network = small(name).eval()
    t = network.state_dict()

    def norm(x: Tensor, at: str) -> Tensor:
        return F.batch_norm(
            x, t[f"{at}.running_mean"], t[f"{at}.running_var"], t[f"{at}.weight"], t[f"{at}.bias"]
        )

    def convolution(x: Tensor, at: int, stride: int, padding: int) -> Tensor:
        x = F.conv2d(x, t[f"features.{at}.weight"], t[f"features.{at}.bias"], stride, padding)
        return norm(x, f"features.{at + 1}").clamp(min=0)

    images = torch.randn(2, 3, side, side)
    expected = [convolution(images, 0, 4, 2)]
    expected.append(convolution(F.max_pool2d(expected[-1], 3, 2), 4, 1, 2))
    expected.append(convolution(F.max_pool2d(expected[-1], 3, 2), 8, 1, 1))
    expected.append(convolution(expected[-1], 11, 1, 1))
    expected.append(convolution(expected[-1], 14, 1, 1))
    pooled = F.max_pool2d(expected[-1], 3, 2)
    assert pooled.shape[-1] == {224: 6, 97: 2}[side]
    # From 2 x 2 to 6 x 6 positions, each is repeated 3 x 3 times.
    vector = (pooled if side == 224 else pooled.repeat_interleave(3, 2).repeat_interleave(3, 3)).flatten(1)
    for first in (0, 3):
        if name == "alexnet":
            x = vector @ t[f"classifier.{first + 1}.weight"].T + t[f"classifier.{first + 1}.bias"]
        else:
            x = norm(vector @ t[f"classifier.{first}.weight"].T, f"classifier.{first + 1}")
        vector = x.clamp(min=0)
        expected.append(vector[:, :, None, None])
    x = images
    for block, y, channels, position in zip(network.blocks(), expected, network.channels, SIDES, strict=True):
        x = block(x)
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
        assert x.shape[1] == channels and (side != 224 or tuple(x.shape[2:]) == (position, position))
    assert torch.equal(network(images), x)
    last = torch.channels_last
    channels_last = network.to(memory_format=last)(images.contiguous(memory_format=last))
    torch.testing.assert_close(channels_last, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WIDTHS)
def test_first_weights(name: str) -> None:
    torch.manual_seed(0)
    network = AlexNet(name, fc_width=64)
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            std = (2 / (part.kernel_size[0] ** 2 * part.out_channels)) ** 0.5
            assert part.weight.std().item() == pytest.approx(std, rel=0.02)
            assert part.bias is not None and not part.bias.any()
        elif isinstance(part, nn.Linear):
            assert part.weight.std().item() == pytest.approx(0.01, rel=0.05)
            assert part.bias is None if name == "alexnet_rotnet" else not part.bias.any()


def test_dropouts_stand_before_fc6_and_fc7() -> None:
    network = small("alexnet", dropout=0.25)
    assert [part.p for part in network.modules() if isinstance(part, nn.Dropout)] == [0.25, 0.25]
    assert [part.p for part in AlexNet(fc_width=8).modules() if isinstance(part, nn.Dropout)] == [0.5, 0.5]
    assert not any(isinstance(part, nn.Dropout) for part in small("alexnet_rotnet").modules())
    fc6, fc7 = network.blocks()[5:]
    for block, width in ((fc6, 256), (fc7, 32)):
        maps = torch.ones(64, width, 13 if width == 256 else 1, 13 if width == 256 else 1)
        linear = next(part for part in block.modules() if isinstance(part, nn.Linear))
        nn.init.constant_(linear.weight, 1 / linear.in_features)
        # All features of an image have the share of kept inputs over 1 - p, so dropout is before the linear
        # layer.
        outputs = block(maps).flatten(1)
        assert outputs.std(0).max() > 0 and outputs.std(1).max() < 1e-6
        assert outputs.mean().item() == pytest.approx(1, abs=0.05)
        assert torch.allclose(block.eval()(maps), torch.ones(()))


@pytest.mark.parametrize("name", WIDTHS)
def test_the_smallest_image(name: str) -> None:
    network = small(name).eval()
    assert network(torch.randn(1, 3, 63, 63)).shape == (1, 32, 1, 1)
    assert network(torch.randn(0, 3, 64, 80)).shape == (0, 32, 1, 1)
    with pytest.raises(RuntimeError, match="too small"):
        network(torch.randn(1, 3, 62, 63))


@pytest.fixture(scope="module")
def narrow() -> VGG:
    torch.manual_seed(0)
    network = VGG(fc_width=32)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def reference(narrow: VGG) -> Iterator[torchvision.models.VGG]:
    """Build torchvision's VGG16 with the same fully-connected widths and our weights."""
    with torch.device("meta"):
        network = torchvision.models.vgg16_bn()
    network.classifier[0] = nn.Linear(25088, 32)
    network.classifier[3] = nn.Linear(32, 32)
    network.classifier[6] = nn.Identity()
    network.features.to_empty(device="cpu")
    network.load_state_dict(narrow.state_dict())
    yield network.eval()


@pytest.mark.usefixtures("published_widths")
def test_parameters_and_names_are_torchvisions() -> None:
    with torch.device("meta"):
        network, torchvision_network = VGG(), torchvision.models.vgg16_bn()
    expected = {name: tensor.shape for name, tensor in torchvision_network.state_dict().items()}
    last = {name: expected.pop(name) for name in ("classifier.6.weight", "classifier.6.bias")}
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == expected
    missing, unexpected = torchvision_network.load_state_dict(network.state_dict(), strict=False)
    assert missing == list(last) and not unexpected
    # 3x3 convolutions with biases, BatchNorms, and two linear layers.
    widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    by_hand = sum(9 * a * b + 3 * b for a, b in pairwise(widths))
    by_hand += 25088 * 4096 + 4096 * 4096 + 2 * 4096
    assert sum(p.numel() for p in network.parameters()) == by_hand == 134_268_992
    assert network.channels == (64, 128, 256, 512, 512, 4096, 4096)


@torch.no_grad()
@pytest.mark.parametrize("size", [(224, 224), (65, 47)])
def test_blocks_compute_torchvisions_features(
    narrow: VGG, reference: torchvision.models.VGG, size: tuple[int, int]
) -> None:
    images = torch.randn(1, 3, *size)
    # The indices of the ReLUs of conv1_2, conv2_2, conv3_3, conv4_3 and conv5_3.
    stops, x, expected = (5, 12, 22, 32, 42), images, []
    for number, layer in enumerate(reference.features):
        x = layer(x)
        if number in stops:
            expected.append(x.clone())
    x = images
    for number, block in enumerate(narrow.blocks()):
        x = block(x)
        if number < 5:
            assert torch.equal(x, expected[number])
    assert x.shape == (1, 32, 1, 1)
    torch.testing.assert_close(x.flatten(1), reference(images))
    assert torch.equal(narrow(images), x)


def test_one_dropout_before_fc7(narrow: VGG) -> None:
    assert not any(isinstance(part, nn.Dropout) for block in narrow.blocks()[:6] for part in block.modules())
    last = VGG(dropout=0.2, fc_width=8).blocks()[6]
    assert [part.p for part in last.modules() if isinstance(part, nn.Dropout)] == [0.2]
    assert isinstance(list(last)[1], nn.Dropout)  # type: ignore[call-overload]


def test_first_weights_are_torchvisions() -> None:
    torch.manual_seed(0)
    for name, value in VGG(fc_width=64).named_parameters():
        if name.endswith("bias"):
            assert not value.any()
        elif value.ndim == 4:
            assert value.std().item() == pytest.approx((2 / (9 * len(value))) ** 0.5, rel=0.05)
        elif value.ndim == 2:
            assert value.std().item() == pytest.approx(0.01, rel=0.05)
        else:
            assert (value == 1).all()


def test_the_smallest_image_of_vgg(narrow: VGG) -> None:
    assert narrow(torch.randn(2, 3, 32, 33)).shape == (2, 32, 1, 1)
    assert narrow(torch.randn(0, 3, 40, 40)).shape == (0, 32, 1, 1)
    with pytest.raises(RuntimeError, match="too small"):
        narrow(torch.randn(1, 3, 33, 31))


# SSL++, section V.A, with the kernels of RotNet's code: (kernel, outputs) of each convolution, and the
# block's last pool.
DESCRIPTION: list[tuple[list[tuple[int, int]], str]] = [
    ([(5, 192), (1, 160), (1, 96)], "max"),
    ([(5, 192), (1, 192), (1, 192)], "average"),
    ([(3, 192), (1, 192), (1, 192)], ""),
    ([(3, 192), (1, 192), (1, 192)], ""),
    ([(3, 192), (1, 192), (1, 192)], ""),
]


def reference_outputs(state: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    """Compute every block's output by torch's functions, from the description and the tensors in order."""
    left, outputs = iter(state.values()), []
    for layers, pool in DESCRIPTION[: len(state) // 18]:
        for kernel, width in layers:
            weight, scale, shift, mean, variance, _ = (next(left) for _ in range(6))
            assert weight.shape == (width, images.shape[1], kernel, kernel)
            images = F.conv2d(images, weight, padding=(kernel - 1) // 2)
            images = F.relu(F.batch_norm(images, mean, variance, scale, shift))
        if pool == "max":
            images = F.max_pool2d(images, 3, 2, 1)
        elif pool == "average":
            images = F.avg_pool2d(images, 3, 2, 1)
        outputs.append(images)
    assert next(left, None) is None
    return outputs


@torch.no_grad()
@pytest.mark.parametrize("name", NUM_BLOCKS)
@pytest.mark.parametrize("size", [(32, 32), (29, 33), (4, 5)])
def test_blocks_are_the_description(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = NIN(name)
    for key, buffer in network.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif key.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    images = torch.randn(2, 3, *size)
    expected = reference_outputs(network.state_dict(), images)
    assert len(expected) == network.eval().num_blocks == NUM_BLOCKS[name]
    halves = [-(-side // 2) for side in size], [-(-side // 4) for side in size]
    x, none = images, images[:0]
    for number, (block, width) in enumerate(zip(network.blocks(), network.channels, strict=True), start=1):
        x, none = block(x), block(none)
        assert x.shape[1:] == (width, *halves[0 if number == 1 else 1]) and none.shape == (0, *x.shape[1:])
        assert x.std() > 0
        torch.testing.assert_close(x, expected[number - 1])
    assert torch.equal(network(images), x) and network(images[:1]).shape == (1, *x.shape[1:])
    if size == (32, 32):
        assert [tuple(output.shape[1:]) for output in expected] == [
            (96, 16, 16), *[(192, 8, 8)] * (network.num_blocks - 1)
        ]  # fmt: skip


@pytest.mark.parametrize(("name", "count"), [("nin3", 1_003_712), ("nin4", 1_410_368), ("nin5", 1_817_024)])
def test_parameters_and_first_weights(name: str, count: int) -> None:
    torch.manual_seed(0)
    network, by_hand, inputs = NIN(name), 0, 3
    for layers, _ in DESCRIPTION[: NUM_BLOCKS[name]]:
        for kernel, width in layers:
            by_hand += kernel**2 * inputs * width + 2 * width  # no biases but BatchNorms'
            inputs = width
    assert sum(parameter.numel() for parameter in network.parameters()) == by_hand == count
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            std = (2 / (part.kernel_size[0] ** 2 * part.out_channels)) ** 0.5
            assert part.bias is None
            # Four standard errors.
            assert part.weight.std().item() == pytest.approx(std, rel=4 / (2 * part.weight.numel()) ** 0.5)
        elif isinstance(part, nn.BatchNorm2d):
            assert (part.weight == 1).all() and not part.bias.any()
    assert network.block_names == tuple(f"block{i + 1}" for i in range(NUM_BLOCKS[name]))


def test_a_block_for_classifiers_is_the_third() -> None:
    with torch.device("meta"):
        block, third = convolutions(192), NIN("nin3").blocks()[2]
    assert [type(part) for part in block] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 3
    assert {key: value.shape for key, value in block.state_dict().items()} == {
        key: value.shape for key, value in third.state_dict().items()
    }


def test_images_of_less_than_four_pixels_are_refused() -> None:
    backbone = NIN("nin3")
    blocks = StageBlocks(backbone, make_plan("end_to_end", (1,), num_blocks=3)[0]).eval()
    with pytest.raises(ValueError, match="images of 3 px: this backbone reads 4 px and more"):
        blocks(torch.zeros(1, 3, 32, 3))
    assert blocks(torch.zeros(1, 3, 4, 4)).shape == (1, 192, 1, 1)


def parts(stages: Sequence[Stage]) -> list[str]:
    return [f"{stage.first_learning}-{stage.last_block}" for stage in stages]


@pytest.mark.parametrize(
    ("num_blocks", "num_stages", "expected"),
    [
        (3, 3, ["1-1", "2-2", "3-3"]), (3, 2, ["1-2", "2-3"]),
        (4, 3, ["1-2", "2-3", "3-4"]), (4, 2, ["1-3", "2-4"]),
        (5, 3, ["1-3", "2-4", "3-5"]),
    ],
)  # fmt: skip
def test_default_partitions_as_docs_backbones_has_them(
    num_blocks: int, num_stages: int, expected: list[str]
) -> None:
    stages = make_plan("psl", (1,) * num_stages, num_blocks=num_blocks)
    assert parts(stages) == expected
    overlap = [one.last_block >= other.first_learning for one, other in pairwise(stages)]
    assert overlap == [(num_blocks, num_stages) != (3, 3)] * (num_stages - 1)


def test_three_stages_of_three_blocks_can_learn_one_each_alone() -> None:
    """Each stage must begin and end above the one before."""
    ranges, partitions = [(first, last) for last in (1, 2, 3) for first in range(1, last + 1)], []
    for one, two, three in itertools.product(ranges, repeat=3):
        partition = tuple(f"{first}-{last}" for first, last in (one, two, three))
        with contextlib.suppress(ValueError):
            partitions.append(parts(make_plan("psl", (1,) * 3, num_blocks=3, partition=partition)))
    assert partitions == [["1-1", "2-2", "3-3"]]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    "name", ["nin4", *(slow(name) for name in ("nin3", "nin5", "resnet34", "resnet34_iic"))]
)
def test_exactly_the_learning_blocks_change_in_every_plan(name: str, plan: str) -> None:
    torch.manual_seed(0)
    backbone = make_backbone(name).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = noise_batch(views(backbone), 4)
    for stage in make_plan(plan, (1, 1, 1), num_blocks=backbone.num_blocks):
        step = train_step(backbone, stage)
        before = [snapshot(block) for block in backbone.blocks()]
        step.step([batch], lr=0.01)
        assert not step.num_skipped
        for number, block in enumerate(backbone.blocks(), start=1):
            learns = stage.first_learning <= number <= stage.last_block
            for key, value in block.state_dict().items():
                assert torch.equal(before[number - 1][key], value) != learns, (stage, number, key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 16, 1, 1), (0, 3, 2, 2)])
def test_it_is_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    maps = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn(shape[:2]).to(dtype)
    expected = torch.autograd.grad(maps.mean((2, 3)), maps, gradient)[0]
    means = mean_of_positions(maps)
    (actual,) = torch.autograd.grad(means, maps, gradient)
    assert torch.equal(means, maps.mean((2, 3))) and torch.equal(actual, expected)
    assert torch.equal(AveragePool()(maps), nn.AdaptiveAvgPool2d(1)(maps))


def test_the_gradient_is_expanded() -> None:
    """A layer before it reads it in its own layout, without a copy from another one."""
    strides = []
    maps = torch.randn(2, 3, 4, 4, requires_grad=True)
    middle = maps * 2
    middle.register_hook(lambda gradient: strides.append(gradient.stride()))
    mean_of_positions(middle).sum().backward()
    assert strides == [(3, 1, 0, 0)]
