"""Backbones by name."""

from fastpsl.backbones.backbone import Backbone

BACKBONES = ("resnet18", "resnet50", "revnet50")


def make_backbone(name: str) -> Backbone:
    """A new backbone with random weights."""
    if name not in BACKBONES:
        raise ValueError(f"--backbone {name}: allowed are {', '.join(BACKBONES)}")
    if name == "revnet50":
        from fastpsl.backbones.revnet import RevNet

        return RevNet()
    from fastpsl.backbones.resnet import ResNet

    return ResNet(name)
