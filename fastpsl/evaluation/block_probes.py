"""Train classifiers of several layers on a frozen backbone's blocks (SSL++, Tables III, IV, VIII).

A classifier is one more NIN block with a linear layer, or one to three fully-connected layers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.evaluation.few_labels import FewLabels
from fastpsl.evaluation.probes import Probes
from fastpsl.models.backbone import Backbone
from fastpsl.models.layers import normal_weights
from fastpsl.models.nin import WIDTH, convolutions
from fastpsl.tasks.classify import average_and_linear, linear

KINDS = ("conv", "fc1", "fc2", "fc3")
# The width of a hidden layer, as in RotNet's MultLayer and AET's FC2: 20 units per class, at most 2048.
HIDDEN_PER_CLASS, MAX_HIDDEN = 20, 2048


class BlockHead(NamedTuple):
    """A classifier on one block.

    Attributes:
        name: Kind and block, such as conv_B2.
        kind: One of KINDS.
        block: Number of the block, from 1.
    """

    name: str
    kind: str
    block: int


def read_heads(names: Sequence[str], backbone: Backbone) -> tuple[BlockHead, ...]:
    """Return the classifiers that `--heads` names.

    Raises:
        ValueError: `names` is empty, names a classifier twice, or names one that this backbone does not have.
    """
    kinds = ", ".join(f"{kind}_B<k>" for kind in KINDS)
    if not names:
        raise ValueError(f"--heads without any: name one or more of {kinds}, such as conv_B2")
    heads = []
    for name in names:
        match = re.fullmatch(rf"({'|'.join(KINDS)})_B(\d+)", name)
        if match is None:
            raise ValueError(f"--heads {name}: unknown classifier; allowed are {kinds}, such as conv_B2")
        head = BlockHead(name, match[1], int(match[2]))
        if not 1 <= head.block <= backbone.num_blocks:
            raise ValueError(
                f"--heads {name}: {backbone.name} has the blocks B1 to B{backbone.num_blocks}; "
                "name one of these"
            )
        if names.count(name) > 1:
            raise ValueError(f"--heads names {name} {names.count(name)} times: name each once")
        heads.append(head)
    return tuple(heads)


@dataclass(kw_only=True)
class BlockProbes(Probes):
    """A task that trains classifiers on a frozen backbone's blocks; those on one block share its features."""

    heads: tuple[BlockHead, ...]

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        return BlockHeads(self.heads, self.block_shapes(), self.num_classes)


@dataclass(kw_only=True)
class FewLabelBlockProbes(FewLabels, BlockProbes):
    """A `BlockProbes` task that learns from a few images of each class (SSL++, Table VIII)."""


class BlockHeads(nn.Module):
    """A module of the classifiers of all blocks; it computes in float32, even under autocast.

    Args:
        heads: The classifiers.
        shapes: (channels, height, width) of each block.
        num_classes: Number of logits of each classifier.
    """

    def __init__(self, heads: Sequence[BlockHead], shapes: Sequence[Sequence[int]], num_classes: int):
        super().__init__()
        self.blocks = {head.name: head.block for head in heads}
        self.classifiers = nn.ModuleDict(
            {head.name: classifier(head.kind, shapes[head.block - 1], num_classes) for head in heads}
        )

    @override
    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the logits [B, num_classes] of each classifier, by its name, such as conv_B2.

        Args:
            features: Maps [B, C, h, w] of the blocks, B1 first, up to the last block with a classifier or
                further.
        """
        with torch.autocast(features[0].device.type, enabled=False):
            return {
                name: module(features[self.blocks[name] - 1].float())
                for name, module in self.classifiers.items()
            }


def classifier(kind: str, shape: Sequence[int], num_classes: int) -> nn.Sequential:
    """Build a classifier from [B, *shape] to logits [B, num_classes].

    conv: "three convolutional layers and a linear soft-max layer" on the average over the map (section V.A).
    The convolutions are 3x3, 1x1 and 1x1, each with 192 channels, BatchNorm and ReLU, as in RotNet's
    NIN_ConvBlock3.

    fc1, fc2, fc3: one to three fully-connected layers on all C * h * w features. SSL++ states their number
    alone. The rest follows AET [9]: fc1 has a BatchNorm without scale and shift before its layer, fc2 has
    none. Hidden layers have no bias and are followed by BatchNorm and ReLU (AET's FC2; fc3 is RotNet's
    MultLayer).

    Initial weights are those of both papers: N(0, 2 / (k² · outputs)) for convolutions, N(0, 2 / outputs) for
    fully-connected layers, and biases of 0.
    """
    channels, width = shape[0], prod(shape)
    if kind == "conv":
        block = convolutions(channels)
        normal_weights(block)
        return nn.Sequential(block, *average_and_linear(WIDTH, num_classes, _std(num_classes)))
    if kind == "fc1":
        norm = nn.BatchNorm2d(channels, affine=False)
        return nn.Sequential(norm, nn.Flatten(), linear(width, num_classes, _std(num_classes)))
    layers: list[nn.Module] = [nn.Flatten()]
    hidden = min(HIDDEN_PER_CLASS * num_classes, MAX_HIDDEN)
    for _ in range(int(kind[2:]) - 1):
        layer = nn.Linear(width, hidden, bias=False)
        nn.init.normal_(layer.weight, std=_std(hidden))
        layers += [layer, nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
        width = hidden
    return nn.Sequential(*layers, linear(width, num_classes, _std(num_classes)))


def _std(num_outputs: int) -> float:
    return float((2 / num_outputs) ** 0.5)
