"""The names of the backbones, for help texts and advice. This module does not import torch, which is slow."""

BACKBONES = (
    "alexnet",
    "alexnet_rotnet",
    "nin3",
    "nin4",
    "nin5",
    "resnet18",
    "resnet18_cifar",
    "resnet34",
    "resnet34_iic",
    "resnet50",
    "resnet50_mlp",
    "revnet50",
    "vgg16",
)
# A backbone → one of the same shape that takes less memory in training, and why.
LESS_MEMORY = {"resnet50": ("revnet50", "it recomputes what ResNet-50 keeps")}
ANY_BACKBONE = f"{', '.join(BACKBONES[:-1])} or {BACKBONES[-1]}"
