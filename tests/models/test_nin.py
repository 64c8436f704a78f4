"""Network in Network: its description in plain functions, initial weights, stages, and small images."""

import contextlib
import itertools
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastpsl.engine.plan import PLANS, Stage, make_plan
from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.models.convolutional import NIN, NUM_BLOCKS, convolutions
from fastpsl.models.factory import make_backbone
from tests.engine.test_stage import snapshot
from tests.engine.tiny import noise_batch
from tests.models.test_backbones import train_step, views
from tests.slow import slow

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
