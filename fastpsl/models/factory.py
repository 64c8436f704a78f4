"""Construction of backbones by name."""

from torch import nn

from fastpsl.models.backbone import Backbone
from fastpsl.models.convolutional import NIN, VGG, AlexNet, read_channels
from fastpsl.models.given import Given, backbone_of, given, take_weights
from fastpsl.models.names import check_backbone, is_module, is_own, is_timm, module_not_given

WITH_DROPOUT = ("alexnet", "vgg16")
# The last blocks of these backbones are fully-connected and return vectors, not maps.
OF_VECTORS = ("alexnet", "alexnet_rotnet", "resnet50_mlp", "vgg16")


def make_backbone(name: str | nn.Module, *, num_channels: int = 3, dropout: float | None = None) -> Backbone:
    """Build a backbone with random weights, or with those of a module.

    Args:
        name: One of `BACKBONES`, "timm/NAME" for a model of timm, or "FILE.py:CLASS" for your own module.
            Or a module: a model that timm made, torchvision's ResNet or VGG, a backbone, or your own. Without
            `blocks()` and `channels`, yours is one block. The backbone is a copy with the module's weights;
            the module itself stays as it is.
        num_channels: The number of channels of the images.
        dropout: The probability of dropout, in [0, 1), for alexnet and vgg16. None means the network's
            default.

    Returns:
        The backbone, in train mode on the CPU.

    Raises:
        ValueError: The name is unknown, the backbone has no dropout, or `dropout` is out of range. Or the
            network of timm or of your own cannot be used.
    """
    if not isinstance(name, str):
        name = given(name)
    if isinstance(name, Given) and (is_module(name) or is_own(name)):
        if dropout is not None:
            raise ValueError(f"--dropout {dropout:g}: it is not for a module of your own; leave it out")
        return backbone_of(name, num_channels)
    if isinstance(name, Given):
        backbone = make_backbone(str(name), num_channels=num_channels, dropout=dropout)
        take_weights(backbone, name)
        return backbone
    if is_module(name):
        raise module_not_given("the run", name)
    check_backbone(name)
    if dropout is not None and name not in WITH_DROPOUT:
        raise ValueError(
            f"--dropout {dropout:g}: {name} has no dropout; leave it out, or choose --backbone "
            f"{' or '.join(WITH_DROPOUT)}"
        )
    if dropout is not None and not 0 <= dropout < 1:
        raise ValueError(f"--dropout {dropout:g}: it must be 0 or more and below 1")
    if is_timm(name):
        from fastpsl.models.timm_backbone import TimmBackbone

        return TimmBackbone(name, num_channels)
    if is_own(name):
        from fastpsl.models.own_backbone import OwnBackbone

        return OwnBackbone(name, num_channels)
    backbone = _make(name, dropout)
    if num_channels != 3:
        read_channels(backbone, num_channels)
    return backbone


def _make(name: str, dropout: float | None) -> Backbone:
    if name in ("alexnet", "alexnet_rotnet"):
        return AlexNet(name, dropout=dropout)
    if name == "vgg16":
        return VGG(dropout=dropout)
    if name.startswith("nin"):
        return NIN(name)
    if name == "revnet50":
        from fastpsl.models.revnet import RevNet

        return RevNet()
    from fastpsl.models.resnet import ResNet

    return ResNet(name)
