"""Both AlexNets: counts of parameters, blocks compared to torch functions, initial weights, and sizes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastpsl.models.convolutional import WIDTHS, AlexNet

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
    channels_last = network.to(memory_format=torch.channels_last)(
        images.contiguous(memory_format=torch.channels_last)
    )
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
