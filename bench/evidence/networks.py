"""Small backbones for experiments on a few cores: `--backbone bench/evidence/networks.py:SmallResNet`."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override


def convolution(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Sequential:
    """Build a convolution of `side` x `side` without a bias, BatchNorm and ReLU."""
    layer = nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class BasicBlock(nn.Module):
    """A residual block of two 3x3 convolutions, with a 1x1 convolution beside them."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = convolution(inputs, outputs, 3, stride)
        self.second = convolution(outputs, outputs, 3)[:2]
        self.shortcut = convolution(inputs, outputs, 1, stride)[:2]

    @override
    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(self.second(self.first(features)) + self.shortcut(features))


class SmallResNet(nn.Module):
    """A ResNet of five blocks: 1.2 million weights, 16 million multiply-adds for an image of 32 px.

    B1 halves the side of the image, B3, B4 and B5 halve it again.
    """

    channels: Sequence[int] = (32, 32, 64, 128, 256)

    def __init__(self) -> None:
        super().__init__()
        first, *widths = self.channels
        self.conv1 = convolution(3, first, 3, stride=2)
        units = zip(self.channels, widths, (1, 2, 2, 2), strict=False)
        self.units = nn.ModuleList(BasicBlock(*unit) for unit in units)

    def blocks(self) -> list[nn.Module]:
        """Return B1 to B5."""
        return [self.conv1, *self.units]


def _unchanged() -> nn.Conv2d:
    """Build a convolution that changes nothing, because a backbone must have parameters."""
    layer = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.dirac_(layer.weight)
    return layer


class Pixels32(nn.Module):
    """An image of 32 px itself, as 3,072 channels of one position. Larger images are averaged to 32 px."""

    channels: Sequence[int] = (3 * 32**2,)

    def __init__(self) -> None:
        super().__init__()
        self.same = _unchanged()

    def blocks(self) -> list[nn.Module]:
        """Return the one block."""
        averaged = nn.AdaptiveAvgPool2d(32)
        return [nn.Sequential(self.same, averaged, nn.Flatten(), nn.Unflatten(1, (-1, 1, 1)))]


class Colours(nn.Module):
    """The shares of 64 colours in an image: two bits of each channel of values in [0, 1]."""

    channels: Sequence[int] = (64,)

    def __init__(self) -> None:
        super().__init__()
        self.same = _unchanged()

    @override
    def forward(self, images: Tensor) -> Tensor:
        bits = (self.same(images).clamp(0, 1) * 3.999).long()
        colours = 16 * bits[:, 0] + 4 * bits[:, 1] + bits[:, 2]
        return functional.one_hot(colours, 64).float().mean((1, 2))[:, :, None, None]

    def blocks(self) -> list[nn.Module]:
        """Return the one block."""
        return [self]
