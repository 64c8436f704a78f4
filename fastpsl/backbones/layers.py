"""What backbones share: vectors as maps of one position, and first weights."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def on_vectors(width: int, *layers: nn.Module) -> nn.Sequential:
    """A block of `layers` that take vectors: maps [B,C,h,w] are laid out as [B,C*h*w], what comes out is [B,width,1,1]."""
    return nn.Sequential(nn.Flatten(), *layers, nn.Unflatten(1, (width, 1, 1)))


def no_weights() -> torch.device:
    """`with no_weights():` around layers that `normal_weights` fills: their own first weights, half of the time, are not drawn."""
    return torch.device("meta")


def normal_weights(network: nn.Module) -> None:
    """First weights as DeepCluster's code and torchvision's VGG and ResNet: convolutions N(0, 2 / (k² · outputs)), linears N(0, 0.01²), biases 0.

    BatchNorms begin with scale 1 and shift 0, as torch makes them. A network that was built within `no_weights` gets its memory, too.
    """
    if any(parameter.is_meta for parameter in network.parameters()):
        network.to_empty(device=torch.get_default_device())
    for part in network.modules():
        if isinstance(part, _BatchNorm):
            part.reset_parameters()
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.01)
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
