"""`fastpsl export`: a backbone alone, in the names and the file that another library reads, and its input record."""

import io
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastpsl.models.vgg import SIDE as VGG_SIDE
from fastpsl.models.weight_files import safetensors_bytes, sha256_of_bytes
from fastpsl.models.weights import Pretrained, load_pretrained
from fastpsl.pipelines.files.atomic import output_errors, write_atomically
from fastpsl.pipelines.input_record import Input

FORMAT = 1
RESNETS = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet50_mlp": 50}


def export(
    checkpoint: Path,
    to: str,
    out: Path,
    *,
    overwrite: bool = False,
    backbone: str | None = None,
    input: Input | None = None,
) -> str:
    """Write `out`, and OUT.json beside it with the input record and the origin (safetensors: in its metadata).

    to: torchvision, timm, detectron2 or safetensors. Returns what was written, with the table of keys. ValueError where the
    library has no such backbone, or `out` exists. Of resnet50_mlp libraries get the ResNet-50, B1 to B5.
    """
    if to not in TARGETS:
        raise ValueError(f"--to {to}: allowed are {', '.join(TARGETS)}")
    target = TARGETS[to]
    beside = out.with_name(f"{out.name}.json")
    for path in (out,) if to == "safetensors" else (out, beside):
        if path.exists() and not overwrite:
            raise ValueError(f"{path}: exists already; remove it, give --overwrite, or choose another name")
    if target.ending and out.suffix not in target.ending:
        raise ValueError(
            f"{out}: {to} tells its files by their ending; call it *{' or *'.join(target.ending)}"
        )
    found = load_pretrained(checkpoint, backbone, input)
    name = found.record["backbone"]
    if target.backbones and name not in target.backbones:
        raise ValueError(f"{to} has no {name}: --to safetensors writes it under its own names")
    tensors = {key: tensor.detach().contiguous() for key, tensor in found.backbone.state_dict().items()}
    told = _told(found, to)
    if name == "resnet50_mlp" and to != "safetensors":
        # No library has B6, and strict loading would refuse it.
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("mlp.")}
        told |= {"backbone": "resnet50", "left_out": ["mlp.*"]}
    renamed = {target.rename(key): tensor for key, tensor in tensors.items()}
    assert len(renamed) == len(tensors)
    data = target.write(renamed, told)
    with output_errors(out):
        if to != "safetensors":
            told["sha256"] = sha256_of_bytes(data)
            write_atomically(beside, (json.dumps(told, indent=1) + "\n").encode())
        write_atomically(out, data)
    where = "its metadata" if to == "safetensors" else str(beside)
    written = [
        f"{out}: {len(tensors)} tensors, {len(data) / 1e6:,.1f} MB, for {to}; the input record is in {where}"
    ]
    if told["left_out"]:
        written.append(f"  left out: {', '.join(told['left_out'])}, which {to} has not")
    if "model" in told:
        written.append(f"  for {told['model']}")
    return "\n".join([str(found), *written, *key_table(list(zip(tensors, renamed, strict=True)))])


def detectron2_name(name: str) -> str:
    """torchvision's name of a ResNet's tensor in Detectron2 (its tools/convert-torchvision-to-d2.py).

    The first layers are its stem, layer1 is res2, a BatchNorm is the norm of its convolution, downsample is shortcut.
    """
    stage = re.match(r"layer(\d)\.", name)
    name = f"res{int(stage[1]) + 1}.{name[stage.end() :]}" if stage else f"stem.{name}"
    name = re.sub(r"\bbn(\d)\b", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def timm_name(name: str) -> str:
    """torchvision's name of a tensor in timm, which has the same but for VGG's fully-connected layers."""
    return name.replace("classifier.0.", "pre_logits.fc1.").replace("classifier.3.", "pre_logits.fc2.")


def key_table(pairs: list[tuple[str, str]]) -> list[str]:
    """Lines that show which name became which; names that differ in a block's number or in their last part share a line."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for pair in pairs:
        groups.setdefault((_pattern(pair[0]), _pattern(pair[1])), []).append(pair)
    rows = [
        (len(group), _together([ours for ours, _ in group]), _together([theirs for _, theirs in group]))
        for group in groups.values()
    ]
    width = max(len(ours) for _, ours, _ in rows)
    return [
        f"  tensors  {'here':<{width}}  there",
        *(f"  {number:>7}  {ours:<{width}}  {theirs}" for number, ours, theirs in rows),
    ]


# A block's or layer's number: of layer3, of res4, or behind a point.
_NUMBER = re.compile(r"((?<=^layer)|(?<=^res)|(?<=\.))\d+(?=\.|$)")


def _pattern(name: str) -> str:
    return _NUMBER.sub("#", name.rpartition(".")[0])


def _together(names: list[str]) -> str:
    """layer1-4.0-5.bn1.* for names of one pattern."""
    stems, leaves = zip(*(name.rpartition(".")[::2] for name in names), strict=True)
    ranges = []
    for numbers in zip(*((int(match[0]) for match in _NUMBER.finditer(stem)) for stem in stems), strict=True):
        low, high = min(numbers), max(numbers)
        ranges.append(str(low) if low == high else f"{low}-{high}")
    texts = iter(ranges)
    stem = _NUMBER.sub(lambda _: next(texts), stems[0])
    return f"{stem}.{leaves[0] if len(set(leaves)) == 1 else '*'}"


def _torch_bytes(tensors: dict[str, Tensor], told: dict[str, Any]) -> bytes:
    data = io.BytesIO()
    torch.save(tensors, data)
    return data.getvalue()


def _timm_bytes(tensors: dict[str, Tensor], told: dict[str, Any]) -> bytes:
    """timm's VGG has fc6 and fc7 as convolutions, over all of fc6's 7 x 7 positions and over one."""
    sides = {"pre_logits.fc1.weight": VGG_SIDE, "pre_logits.fc2.weight": 1}
    return _torch_bytes(
        {
            name: tensor.reshape(len(tensor), -1, sides[name], sides[name]) if name in sides else tensor
            for name, tensor in tensors.items()
        },
        told,
    )


def _detectron2_bytes(tensors: dict[str, Tensor], told: dict[str, Any]) -> bytes:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    # Without matching_heuristics Detectron2 would want the names of the whole detector.
    model = {"model": arrays, "__author__": "fastpsl", "matching_heuristics": True}
    return pickle.dumps(model, protocol=4)


@dataclass(frozen=True)
class Target:
    """rename: of a tensor. write: the file's bytes, of renamed tensors and what is told of them. ending: which the library needs.

    backbones: those that the library can load; empty for all.
    """

    rename: Callable[[str], str]
    write: Callable[[dict[str, Tensor], dict[str, Any]], bytes]
    ending: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()


TARGETS = {
    "torchvision": Target(str, _torch_bytes, (), (*RESNETS, "resnet18_cifar", "vgg16")),
    "timm": Target(timm_name, _timm_bytes, (), (*RESNETS, "vgg16")),
    "detectron2": Target(detectron2_name, _detectron2_bytes, (".pkl",), tuple(RESNETS)),
    "safetensors": Target(str, safetensors_bytes, (".safetensors",)),
}


def _told(found: Pretrained, to: str) -> dict[str, Any]:
    record = found.record
    told = {
        "format": FORMAT,
        "to": to,
        "backbone": record["backbone"],
        "input": found.input.as_dict(),
        # The file's name alone: the folders of a machine are nobody else's business.
        "source": {"name": Path(record["path"]).name, "sha256": record["sha256"], "kind": record["kind"]},
        **{name: record[name] for name in ("run_step", "science", "cut")},
        "left_out": [],
    }
    if to == "torchvision" and record["backbone"] == "resnet18_cifar":
        told["model"] = (
            f"torchvision.models.resnet18() with conv1 = torch.nn.Conv2d({found.input.num_channels}, 64, 3, padding=1, bias=False) "
            f"and maxpool = torch.nn.Identity()"
        )
    if to == "detectron2":
        told["detectron2"] = _detectron2_config(record["backbone"], found.input)
    return told


def _detectron2_config(backbone: str, input: Input) -> dict[str, Any]:
    """What its configuration must say for these weights: strides as torchvision has them, pixels in [0, 255]."""
    return {
        "MODEL.PIXEL_MEAN": [round(255 * value, 4) for value in input.mean],
        "MODEL.PIXEL_STD": [round(255 * value, 4) for value in input.std],
        "MODEL.RESNETS.DEPTH": RESNETS[backbone],
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64 if backbone in ("resnet18", "resnet34") else 256,
        "INPUT.FORMAT": "RGB",
    }
