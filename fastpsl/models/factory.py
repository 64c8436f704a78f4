"""Construction of backbones by name."""

from torch import nn

from fastpsl.models.backbone import Backbone
from fastpsl.models.layers import normal_weights
from fastpsl.models.names import BACKBONES

WITH_DROPOUT = ("alexnet", "vgg16")
# The last blocks of these backbones are fully-connected and return vectors, not maps.
OF_VECTORS = ("alexnet", "alexnet_rotnet", "resnet50_mlp", "vgg16")


def make_backbone(name: str, *, num_channels: int = 3, dropout: float | None = None) -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: One of `BACKBONES`.
        num_channels: The number of channels of the images.
        dropout: The probability of dropout, or None for the network's default.

    Raises:
        ValueError: The name is unknown, the backbone has no dropout, or `dropout` is outside [0, 1).
    """
    if name not in BACKBONES:
        raise ValueError(f"--backbone {name}: allowed are {', '.join(BACKBONES)}")
    if dropout is not None and name not in WITH_DROPOUT:
        raise ValueError(
            f"--dropout {dropout:g}: {name} has no dropout; leave it out, or choose --backbone "
            f"{' or '.join(WITH_DROPOUT)}"
        )
    if dropout is not None and not 0 <= dropout < 1:
        raise ValueError(f"--dropout {dropout:g}: it must be 0 or more and below 1")
    backbone = _make(name, dropout)
    if num_channels != 3:
        _read_channels(backbone, num_channels)
    return backbone


def _make(name: str, dropout: float | None) -> Backbone:
    if name in ("alexnet", "alexnet_rotnet"):
        from fastpsl.models.alexnet import AlexNet

        return AlexNet(name, dropout=dropout)
    if name == "vgg16":
        from fastpsl.models.vgg import VGG

        return VGG(dropout=dropout)
    if name.startswith("nin"):
        from fastpsl.models.nin import NIN

        return NIN(name)
    if name == "revnet50":
        from fastpsl.models.revnet import RevNet

        return RevNet()
    from fastpsl.models.resnet import ResNet

    return ResNet(name)


def _read_channels(backbone: Backbone, num_channels: int) -> None:
    """Replace the first convolution by a newly initialised one that reads `num_channels` channels."""
    place, first = next((n, m) for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        num_channels, first.out_channels, first.kernel_size, first.stride, first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )  # fmt: skip
    normal_weights(new)
    parent, _, attribute = place.rpartition(".")
    setattr(backbone.get_submodule(parent), attribute, new)
