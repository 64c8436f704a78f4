"""The names of the backbones, for help texts and advice. This module does not import torch, which is slow."""

from pathlib import PurePath
from typing import Literal, get_args

from fastpsl.console.words import hint, pasted

BACKBONES = (
    "alexnet", "alexnet_rotnet", "nin3", "nin4", "nin5", "resnet18", "resnet18_cifar", "resnet34",
    "resnet34_iic", "resnet50", "resnet50_mlp", "revnet50", "vgg16",
)  # fmt: skip
# A backbone → one of the same shape that takes less memory in training, and why.
LESS_MEMORY = {"resnet50": ("revnet50", "it recomputes what ResNet-50 keeps")}
ExportName = Literal["torchvision", "timm", "detectron2", "safetensors", "onnx", "hf"]
EXPORTS = get_args(ExportName)
# The endings of files of weights, in lower case. An address with none of them is that of a folder.
WEIGHT_ENDINGS = (".safetensors", ".pt", ".pth", ".tar", ".bin", ".ckpt", ".pkl", ".torch", ".pyth")
MAX_DOWNLOAD_GB = 8.0  # of weights, unless --max-download-gb tells another bound
TIMM = "timm/"
MODULE = "module:"  # of a module that a program gave
ANY_BACKBONE = f"{', '.join(BACKBONES)}, {TIMM}NAME (a model of timm) or FILE.py:CLASS (your own module)"


def check_backbone(name: str, option: str = "--backbone") -> None:
    """Raise ValueError unless a backbone may have this name; timm and files are not asked."""
    if name in BACKBONES or is_timm(name) or is_own(name) or is_module(name):
        return
    similar = hint(name, BACKBONES)
    raise ValueError(f"{option} {name}: no network has this name; {similar}allowed are {ANY_BACKBONE}")


def is_timm(name: str) -> bool:
    """Return whether the name is of a model of timm."""
    return name.startswith(TIMM)


def is_own(name: str) -> bool:
    """Return whether the name is of a file of the user's own, with or without a class."""
    return name.endswith(".py") or ".py:" in name


def without_folder(name: str) -> str:
    """Return a network's name without the folder of a user's file, which may be another one elsewhere."""
    return PurePath(name).name if is_own(name) else name


def is_module(name: str) -> bool:
    """Return whether the name is of a module that a program gave, which nobody can make by this name."""
    return name.startswith(MODULE)


def not_given(source: object, name: str, option: str = "--backbone") -> ValueError:
    """Return the error for a file that names a Python file, which runs only if the user names it as well."""
    return ValueError(f"{source} names {name}, which would run; give {option} {pasted(name)} if you trust it")


def module_not_given(source: object, name: str) -> ValueError:
    """Return the error for a file that names a program's module, which only the program can make."""
    return ValueError(
        f"{source} has a module of a program as its backbone, {name.removeprefix(MODULE)}; in Python, give "
        "backbone= the module again, or else --backbone FILE.py:CLASS, which makes it"
    )
