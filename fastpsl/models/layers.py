"""Layers and initial weights that several backbones and heads use."""

from typing import Any

from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from typing_extensions import override


class _MeanOfPositions(Function):
    @staticmethod
    @override
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        ctx.size = maps.shape
        return maps.mean((2, 3))

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        _, _, height, width = ctx.size
        return (gradient / (height * width))[:, :, None, None].expand(ctx.size)


def mean_of_positions(maps: Tensor) -> Tensor:
    """Return the mean of each channel, whose gradient fits maps of any layout.

    torch's own mean writes its gradient as [B, C, H, W] in this order, and a channels-last network copies it.

    Args:
        maps: Float [B, C, H, W].

    Returns:
        [B, C], of the same dtype.
    """
    means: Tensor = _MeanOfPositions.apply(maps)
    return means


class AveragePool(nn.Module):
    """A pool that computes `nn.AdaptiveAvgPool2d(1)` by `mean_of_positions`."""

    @override
    def forward(self, maps: Tensor) -> Tensor:
        return mean_of_positions(maps)[:, :, None, None]


def on_vectors(width: int, *layers: nn.Module) -> nn.Sequential:
    """Build a block from layers that read vectors.

    The block flattens maps [B,C,h,w] to [B,C*h*w] and returns [B,width,1,1].

    Args:
        width: The output width of the last layer.
        *layers: The layers, in order.
    """
    return nn.Sequential(nn.Flatten(), *layers, nn.Unflatten(1, (width, 1, 1)))


def normal_weights(network: nn.Module) -> None:
    """Initialise weights as DeepCluster's code and torchvision's VGG and ResNet do.

    Convolutions are drawn from N(0, 2 / (k² · outputs)) and linear layers from N(0, 0.01²); biases are 0.
    BatchNorms keep torch's scale 1 and shift 0.
    """
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.01)
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Return the name and the module of the convolution that reads the images, or None without one."""
    return next(((name, part) for name, part in network.named_modules() if isinstance(part, nn.Conv2d)), None)


def read_channels(network: nn.Module, num_channels: int) -> None:
    """Replace the first convolution, which must exist, by a new one that reads `num_channels` channels."""
    found = first_convolution(network)
    assert found is not None
    place, first = found
    new = nn.Conv2d(
        num_channels, first.out_channels, first.kernel_size, first.stride, first.padding,  # type: ignore[arg-type]
        dilation=first.dilation, bias=first.bias is not None, padding_mode=first.padding_mode,  # type: ignore[arg-type]
    )  # fmt: skip
    normal_weights(new)
    parent, _, attribute = place.rpartition(".")
    setattr(network.get_submodule(parent), attribute, new)
