"""Other libraries' files of tensors: their names of tensors, their formats and the backbones they have."""

import io
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastpsl.models.convolutional import VGG_SIDE
from fastpsl.models.foreign_weights import safetensors_bytes
from fastpsl.models.names import is_timm
from fastpsl.models.weights import Pretrained
from fastpsl.pipelines.views import Input


def key_table(pairs: list[tuple[str, str]]) -> list[str]:
    """Build a table of old and new names.

    Names that differ only in block numbers or in their last part share a line.
    """
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for pair in pairs:
        groups.setdefault((_pattern(pair[0]), _pattern(pair[1])), []).append(pair)
    rows = list[tuple[int, str, str]]()
    for group in groups.values():
        old_names, new_names = zip(*group, strict=True)
        rows.append((len(group), _abbreviate(old_names), _abbreviate(new_names)))
    width = max(len(old_name) for _, old_name, _ in rows)
    return [
        f"  tensors  {'here':<{width}}  there",
        *(f"  {number:>7}  {old_name:<{width}}  {new_name}" for number, old_name, new_name in rows),
    ]


# The number of a block or layer: after "layer", after "res" or after a dot.
_NUMBER = re.compile(r"((?<=^layer)|(?<=^res)|(?<=\.))\d+(?=\.|$)")


def _pattern(name: str) -> str:
    return _NUMBER.sub("#", name.rpartition(".")[0])


def _abbreviate(names: Sequence[str]) -> str:
    """Abbreviate names of one pattern, such as layer1-4.0-5.bn1.*."""
    stems, leaves = zip(*(name.rpartition(".")[::2] for name in names), strict=True)
    ranges = []
    for numbers in zip(*((int(match[0]) for match in _NUMBER.finditer(stem)) for stem in stems), strict=True):
        low, high = min(numbers), max(numbers)
        ranges.append(str(low) if low == high else f"{low}-{high}")
    texts = iter(ranges)
    stem = _NUMBER.sub(lambda _: next(texts), stems[0])
    return f"{stem}.{leaves[0] if len(set(leaves)) == 1 else '*'}"


RESNETS = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet50_mlp": 50}


@dataclass(frozen=True)
class Renamed:
    """A backbone's tensors under a library's names."""

    names: list[str]  # our names, in the order of `tensors`
    tensors: dict[str, Tensor]  # by the library's names
    left_out: list[str]  # patterns of our tensors that the library has no place for


def renamed(pretrained: Pretrained, library: str) -> Renamed:
    """Rename a backbone's tensors for a library of `TARGETS`."""
    target, name = TARGETS[library], pretrained.record["backbone"]
    if library in ("timm", "hf") and is_timm(name):
        target = replace(target, rename=str, backbones=())  # its tensors have timm's names already
    if target.backbones and name not in target.backbones:
        raise ValueError(f"{library} has no {name}: --to safetensors writes it under its own names")
    tensors = {key: tensor.detach().contiguous() for key, tensor in pretrained.backbone.state_dict().items()}
    left_out = []
    if name == "resnet50_mlp" and library != "safetensors":
        # No library has B6, and strict loading would reject its tensors.
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("mlp.")}
        left_out = ["mlp.*"]
    exported = {target.rename(key): tensor for key, tensor in tensors.items()}
    for key, side in {"pre_logits.fc1.weight": VGG_SIDE, "pre_logits.fc2.weight": 1}.items():
        if key in exported:  # timm's VGG has fc6 as a 7 x 7 convolution and fc7 as a 1 x 1 convolution
            exported[key] = exported[key].reshape(len(exported[key]), -1, side, side)
    assert len(exported) == len(tensors)
    return Renamed(list(tensors), exported, left_out)


def detectron2_name(name: str) -> str:
    """Return Detectron2's name of a ResNet tensor, given torchvision's.

    The rules are those of its tools/convert-torchvision-to-d2.py. The first layers become the stem, layer1
    becomes res2, a BatchNorm becomes the norm of its convolution, and downsample becomes shortcut.
    """
    stage = re.match(r"layer(\d)\.", name)
    name = f"res{int(stage[1]) + 1}.{name[stage.end() :]}" if stage else f"stem.{name}"
    name = re.sub(r"\bbn(\d)\b", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def timm_name(name: str) -> str:
    """Return timm's name of a tensor, given torchvision's. Only VGG's fully-connected layers differ."""
    return name.replace("classifier.0.", "pre_logits.fc1.").replace("classifier.3.", "pre_logits.fc2.")


def _torch_bytes(tensors: dict[str, Tensor], record: dict[str, Any]) -> bytes:
    data = io.BytesIO()
    torch.save(tensors, data)
    return data.getvalue()


def _detectron2_bytes(tensors: dict[str, Tensor], record: dict[str, Any]) -> bytes:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    # Without matching_heuristics, Detectron2 expects the tensor names of the whole detector.
    model = {"model": arrays, "__author__": "fastpsl", "matching_heuristics": True}
    return pickle.dumps(model, protocol=4)


@dataclass(frozen=True)
class Target:
    """A library that weights can be exported to."""

    rename: Callable[[str], str]  # from torchvision's name of a tensor
    write: Callable[[dict[str, Tensor], dict[str, Any]], bytes]  # of renamed tensors and their record
    ending: tuple[str, ...] = ()  # the file endings that the library recognises; empty for any
    backbones: tuple[str, ...] = ()  # that the library can load; empty for all


TARGETS = {
    "torchvision": Target(str, _torch_bytes, (), (*RESNETS, "resnet18_cifar", "vgg16")),
    "timm": Target(timm_name, _torch_bytes, (), (*RESNETS, "vgg16")),
    "detectron2": Target(detectron2_name, _detectron2_bytes, (".pkl",), tuple(RESNETS)),
    "safetensors": Target(str, safetensors_bytes, (".safetensors",)),
    # Its folder has more files, which export.py writes; these are the bytes of its model.safetensors.
    "hf": Target(timm_name, safetensors_bytes, (), (*RESNETS, "vgg16")),
}


def detectron2_config(backbone: str, input: Input) -> dict[str, Any]:
    """Return the settings that these weights need: torchvision's strides, and pixels in [0, 255]."""
    return {
        "MODEL.PIXEL_MEAN": [round(255 * value, 4) for value in input.mean],
        "MODEL.PIXEL_STD": [round(255 * value, 4) for value in input.std],
        "MODEL.RESNETS.DEPTH": RESNETS[backbone],
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64 if backbone in ("resnet18", "resnet34") else 256,
        "INPUT.FORMAT": "RGB",
    }
