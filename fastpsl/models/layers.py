"""What backbones share: vectors as maps of one position, and first weights."""

from torch import nn


def on_vectors(width: int, *layers: nn.Module) -> nn.Sequential:
    """A block of `layers` that take vectors: maps [B,C,h,w] are laid out as [B,C*h*w], what comes out is [B,width,1,1]."""
    return nn.Sequential(nn.Flatten(), *layers, nn.Unflatten(1, (width, 1, 1)))


def normal_weights(network: nn.Module) -> None:
    """First weights as DeepCluster's code and torchvision's VGG and ResNet: convolutions N(0, 2 / (k² · outputs)), linears N(0, 0.01²), biases 0.

    BatchNorms begin with scale 1 and shift 0, as torch makes them.
    """
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.01)
        if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
