"""The names of backbones and of exports, for help texts. This module does not import torch, which is slow."""

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
ANY_BACKBONE = f"{', '.join(BACKBONES[:-1])} or {BACKBONES[-1]}"
EXPORTS = ("torchvision", "timm", "detectron2", "safetensors", "onnx", "hf")
