"""The work of `fastpsl export`: write a backbone in another library's file format and tensor names."""

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
    checkpoint: Path | Pretrained,
    to: str,
    out: Path,
    *,
    overwrite: bool = False,
    backbone: str | None = None,
    input: Input | None = None,
) -> str:
    """Write a backbone to `out`, and its input record and origin to OUT.json.

    safetensors files hold that record in their metadata instead. torchvision, timm and Detectron2 have no
    MLP, so they get the ResNet-50 of resnet50_mlp, B1 to B5.

    Args:
        checkpoint: Any source that `load_pretrained` reads, or the weights themselves.
        to: "torchvision", "timm", "detectron2" or "safetensors".
        out: The file to write.
        overwrite: Whether to replace existing files.
        backbone: The backbone's name, where `checkpoint` does not record it.
        input: The input that the weights expect, where `checkpoint` does not record it.

    Returns:
        Lines for the terminal: the source, the files and a table of renamed tensors.

    Raises:
        ValueError: The library lacks this backbone or needs another file ending, or `out` exists.
    """
    if to not in TARGETS:
        raise ValueError(f"--to {to}: allowed are {', '.join(TARGETS)}")
    target = TARGETS[to]
    json_path = out.with_name(f"{out.name}.json")
    for path in (out,) if to == "safetensors" else (out, json_path):
        if path.exists() and not overwrite:
            raise ValueError(f"{path}: exists already; remove it, give --overwrite, or choose another name")
    if target.ending and out.suffix not in target.ending:
        raise ValueError(
            f"{out}: {to} tells its files by their ending; call it *{' or *'.join(target.ending)}"
        )
    if isinstance(checkpoint, Pretrained):
        pretrained = checkpoint
    else:
        pretrained = load_pretrained(checkpoint, backbone, input)
    name = pretrained.record["backbone"]
    if target.backbones and name not in target.backbones:
        raise ValueError(f"{to} has no {name}: --to safetensors writes it under its own names")
    tensors = {key: tensor.detach().contiguous() for key, tensor in pretrained.backbone.state_dict().items()}
    record = _record(pretrained, to)
    if name == "resnet50_mlp" and to != "safetensors":
        # No library has B6, and strict loading would reject its tensors.
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("mlp.")}
        record |= {"backbone": "resnet50", "left_out": ["mlp.*"]}
    exported = {target.rename(key): tensor for key, tensor in tensors.items()}
    assert len(exported) == len(tensors)
    data = target.write(exported, record)
    with output_errors(out):
        if to != "safetensors":
            record["sha256"] = sha256_of_bytes(data)
            write_atomically(json_path, (json.dumps(record, indent=1) + "\n").encode())
        write_atomically(out, data)
    where = "its metadata" if to == "safetensors" else str(json_path)
    lines = [
        f"{out}: {len(tensors)} tensors, {len(data) / 1e6:,.1f} MB, for {to}; the input record is in {where}"
    ]
    if record["left_out"]:
        lines.append(f"  left out: {', '.join(record['left_out'])}, which {to} has not")
    if "model" in record:
        lines.append(f"  for {record['model']}")
    return "\n".join([str(pretrained), *lines, *key_table(list(zip(tensors, exported, strict=True)))])


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


def key_table(pairs: list[tuple[str, str]]) -> list[str]:
    """Build a table of old and new names.

    Names that differ only in block numbers or in their last part share a line.

    Args:
        pairs: Pairs of our name and the library's name.
    """
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for pair in pairs:
        groups.setdefault((_pattern(pair[0]), _pattern(pair[1])), []).append(pair)
    rows = [
        (
            len(group),
            _abbreviate([old_name for old_name, _ in group]),
            _abbreviate([new_name for _, new_name in group]),
        )
        for group in groups.values()
    ]
    width = max(len(old_name) for _, old_name, _ in rows)
    return [
        f"  tensors  {'here':<{width}}  there",
        *(f"  {number:>7}  {old_name:<{width}}  {new_name}" for number, old_name, new_name in rows),
    ]


# The number of a block or layer: after "layer", after "res" or after a dot.
_NUMBER = re.compile(r"((?<=^layer)|(?<=^res)|(?<=\.))\d+(?=\.|$)")


def _pattern(name: str) -> str:
    return _NUMBER.sub("#", name.rpartition(".")[0])


def _abbreviate(names: list[str]) -> str:
    """Abbreviate names of one pattern, such as layer1-4.0-5.bn1.*."""
    stems, leaves = zip(*(name.rpartition(".")[::2] for name in names), strict=True)
    ranges = []
    for numbers in zip(*((int(match[0]) for match in _NUMBER.finditer(stem)) for stem in stems), strict=True):
        low, high = min(numbers), max(numbers)
        ranges.append(str(low) if low == high else f"{low}-{high}")
    texts = iter(ranges)
    stem = _NUMBER.sub(lambda _: next(texts), stems[0])
    return f"{stem}.{leaves[0] if len(set(leaves)) == 1 else '*'}"


def _torch_bytes(tensors: dict[str, Tensor], record: dict[str, Any]) -> bytes:
    data = io.BytesIO()
    torch.save(tensors, data)
    return data.getvalue()


def _timm_bytes(tensors: dict[str, Tensor], record: dict[str, Any]) -> bytes:
    """Serialise tensors for timm, whose VGG has fc6 as a 7 x 7 convolution and fc7 as a 1 x 1 convolution."""
    sides = {"pre_logits.fc1.weight": VGG_SIDE, "pre_logits.fc2.weight": 1}
    return _torch_bytes(
        {
            name: tensor.reshape(len(tensor), -1, sides[name], sides[name]) if name in sides else tensor
            for name, tensor in tensors.items()
        },
        record,
    )


def _detectron2_bytes(tensors: dict[str, Tensor], record: dict[str, Any]) -> bytes:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    # Without matching_heuristics, Detectron2 expects the tensor names of the whole detector.
    model = {"model": arrays, "__author__": "fastpsl", "matching_heuristics": True}
    return pickle.dumps(model, protocol=4)


@dataclass(frozen=True)
class Target:
    """A library that weights can be exported to.

    Attributes:
        rename: Maps torchvision's name of a tensor to the library's.
        write: Returns the file's bytes, given the renamed tensors and their record.
        ending: The file endings that the library recognises; empty for any.
        backbones: The backbones that the library can load; empty for all.
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


def _record(pretrained: Pretrained, to: str) -> dict[str, Any]:
    record = pretrained.record
    details = {
        "format": FORMAT,
        "to": to,
        "backbone": record["backbone"],
        "input": pretrained.input.as_dict(),
        # Only the file's name, because exported files are shared and folder names are private.
        "source": {"name": Path(record["path"]).name, "sha256": record["sha256"], "kind": record["kind"]},
        **{name: record[name] for name in ("run_step", "science", "cut")},
        "left_out": [],
    }
    if to == "torchvision" and record["backbone"] == "resnet18_cifar":
        details["model"] = (
            f"torchvision.models.resnet18() with conv1 = torch.nn.Conv2d({pretrained.input.num_channels}, "
            "64, 3, padding=1, bias=False) and maxpool = torch.nn.Identity()"
        )
    if to == "detectron2":
        details["detectron2"] = _detectron2_config(record["backbone"], pretrained.input)
    return details


def _detectron2_config(backbone: str, input: Input) -> dict[str, Any]:
    """Return the settings that these weights need: torchvision's strides, and pixels in [0, 255]."""
    return {
        "MODEL.PIXEL_MEAN": [round(255 * value, 4) for value in input.mean],
        "MODEL.PIXEL_STD": [round(255 * value, 4) for value in input.std],
        "MODEL.RESNETS.DEPTH": RESNETS[backbone],
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64 if backbone in ("resnet18", "resnet34") else 256,
        "INPUT.FORMAT": "RGB",
    }
