"""Backbones by name."""

from torch import nn

BACKBONES = ("resnet18", "resnet50", "revnet50")


def make_backbone(name: str) -> nn.Module:
    """A new backbone with random weights; it has `name`, `channels` (output width of each block) and `blocks()`."""
    if name not in BACKBONES:
        raise ValueError(f"--backbone {name}: allowed are {', '.join(BACKBONES)}")
    if name == "revnet50":
        from fastpsl.backbones.revnet import RevNet

        return RevNet()
    from fastpsl.backbones.resnet import ResNet

    return ResNet(name)
