"""Others' checkpoints: where their dicts keep the backbone, under which names, and what else lies there (docs/weights.md)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_COUNT = ".num_batches_tracked"


@dataclass(frozen=True)
class Naming:
    """How one project names a backbone's tensors: `prefix` + torchvision's name, or a numbered child instead of a name.

    only_with: a pattern of another key that tells this project from those with the same prefix.
    """

    kind: str
    prefix: str
    only_with: str = ""
    numbered: bool = False


_HEADS = r"(projection_head|prediction_head|online_classifier|prototypes)\."
_SOLO = r"(projector|predictor|classifier|momentum_backbone|queue|prototypes|head)\b"

# Tried from the top; the first that matches is it. Where each name stands in its project: docs/weights.md.
NAMINGS = (
    Naming("vissl", "_feature_blocks."),
    Naming("vissl", "trunk._feature_blocks."),
    Naming("moco", "encoder_q."),
    Naming("moco", "base_encoder."),
    Naming("lightly", "backbone.", only_with=r"backbone\.4\.0\.conv1\.", numbered=True),
    Naming("lightly", "backbone.", only_with=_HEADS),
    Naming("lightly", "", only_with=r"4\.0\.conv1\.", numbered=True),
    Naming("solo-learn", "backbone.", only_with=_SOLO),
    Naming("simclr-pytorch", "backbone."),
    Naming("simclr-pytorch", "convnet."),
    Naming("simclr-pytorch", "f.", numbered=True),
    Naming("solo-learn", "encoder.", only_with=r"classifier\."),
    Naming("simsiam", "encoder.", only_with=r"predictor\."),
    Naming("simclr-pytorch", "encoder."),
    Naming("torchvision", ""),
)

# torchvision's children of a ResNet in order, as nn.Sequential(*list(resnet.children())[:-1]) numbers them.
NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
# Where a dict keeps its tensors, outermost first. VISSL has its heads beside the trunk.
WRAPPERS = ("classy_state_dict", "base_model", "model_state_dict", "state_dict", "model", "trunk")
# What may stand beside a backbone: classifiers, projections, predictions, queues, and copies that follow by momentum.
HEADS = re.compile(
    r"(.*?\.)??(fc\d*|linear|g|encoder_k|key_\w+|"
    r"\w*(classifier|head|projection|projector|predictor|prediction|prototype|queue|momentum|teacher|student|criterion)\w*)"
    r"(\.|$)"
)


@dataclass(frozen=True)
class Found:
    """kind: whose naming. tensors: the backbone's, under our names. left_out: what was left out, as "fc.*"."""

    kind: str
    tensors: dict[str, Tensor]
    left_out: list[str]


def recognise(path: Path, state: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> Found:
    """Whose file this is, and in it the tensors that `wanted` (a backbone's state dict) asks for.

    ValueError where no tensors are found, or what is left over is no head. That all tensors are there is for the caller
    to check.
    """
    tensors = _tensors_of(state)
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name (its keys: {few(list(state))}): give a state dict")
    naming = next(naming for naming in NAMINGS if _matches(naming, tensors))
    backbone: dict[str, Tensor] = {}
    if not any(name.endswith(_COUNT) for name in tensors):
        # Files from before PyTorch 0.4.1 do not count batches; nothing of ours reads the count.
        backbone = {name: torch.zeros_like(t) for name, t in wanted.items() if name.endswith(_COUNT)}
    rest = []
    for name, tensor in tensors.items():
        own = _our_name(naming, name)
        if own is not None and own in wanted:
            backbone[own] = tensor
        else:
            rest.append(name)
    strange = [name for name in rest if not HEADS.match(name)]
    if strange and len(rest) < len(tensors):
        raise ValueError(
            f"{path}, read as {naming.kind}'s, holds {len(strange)} tensors that are neither of the backbone nor of a head "
            f"({few(strange)}): give the --backbone that it holds"
        )
    return Found(naming.kind, backbone, sorted({_group(name) for name in rest}))


def _tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict inside its wrappers, without DistributedDataParallel's "module." before every name."""
    while True:
        inner = next((state[name] for name in WRAPPERS if isinstance(state.get(name), Mapping)), None)
        if inner is None:
            break
        state = inner
    tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    while tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _matches(naming: Naming, tensors: Mapping[str, Tensor]) -> bool:
    if naming.only_with and not any(re.match(naming.only_with, name) for name in tensors):
        return False
    return any(name.startswith(naming.prefix) for name in tensors)


def _our_name(naming: Naming, name: str) -> str | None:
    if not name.startswith(naming.prefix):
        return None
    name = name.removeprefix(naming.prefix)
    if naming.numbered:
        number, _, rest = name.partition(".")
        return f"{NUMBERED[number]}.{rest}" if number in NUMBERED else None
    return name


def _group(name: str) -> str:
    """What stands for many names: fc.* for fc.0.weight; a name that ends with the head as it is."""
    head = HEADS.match(name)
    return f"{name[: head.end()].rstrip('.')}.*" if head and head.end() < len(name) else name


def few(names: Sequence[Any]) -> str:
    """The first three, for messages."""
    return ", ".join(map(str, names[:3])) + (", …" if len(names) > 3 else "")
