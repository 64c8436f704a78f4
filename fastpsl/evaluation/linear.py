"""Train linear probes: classifiers on frozen blocks, in one pass (PSL, section 4.2; UIC, 4.3).

A classifier is one more NIN block with a linear layer, or one to three fully-connected layers.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.console.words import number_of
from fastpsl.engine.online_probe import two_standard_errors
from fastpsl.engine.optim.optimisers import sgd
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.evaluation.few_labels import FewLabels
from fastpsl.evaluation.protocols import WHOLE, Pool, block_shapes, pooled, pooled_width
from fastpsl.models.backbone import Backbone
from fastpsl.models.convolutional import WIDTH, convolutions, normal_weights
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.classify import Classify, average_and_linear, linear, masked_cross_entropy, top_correct


@dataclass(kw_only=True)
class Probes(Classify):
    """A task that trains independent classifiers on blocks of a frozen backbone.

    The loss is the sum of the classifiers' losses, so each learns as if it were alone. A subclass defines
    `head`, which makes a module from the features of all blocks, B1 first, to {name: logits [B, num_classes]}
    in float32. The softmaxes of `val_view` and `more_crops` are averaged.
    """

    backbone: Backbone
    more_crops: tuple[ViewSpec, ...] = ()

    @override
    def val_views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.val_view, *self.more_crops)

    def block_shapes(self) -> list[tuple[int, ...]]:
        """Return (channels, height, width) of every block in validation images."""
        return block_shapes(self.backbone, self.val_view)

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Return the sum of the cross-entropies, with top1 of the last; in validation top1, top5 of each."""
        valid = (batch.indices >= 0).float()
        num, total = valid.sum(), torch.zeros((), device=valid.device)
        metrics: Metrics = {}
        crops: list[dict[str, Tensor]] = [head(blocks.features(images)) for images in inputs]
        *_, last = crops[0]
        for name in crops[0]:
            logits = log_mean_softmax([outputs[name] for outputs in crops])
            total = total + masked_cross_entropy(logits, batch.labels, valid)
            if name == last or not head.training:
                metrics |= top_correct(logits, batch.labels, valid, f"_{name}")
        if head.training:  # because the progress line has room for few numbers
            metrics = {name: value for name, value in metrics.items() if name.startswith("top1")}
        return total, {"loss": (total.detach() * num, num)} | metrics


def log_mean_softmax(logits: Sequence[Tensor]) -> Tensor:
    """Return the log of the mean of the crops' softmaxes, [B, classes]; for one crop, its logits."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([crop.log_softmax(1) for crop in logits]).logsumexp(0) - math.log(len(logits))


FINAL = "final"


@dataclass(kw_only=True)
class LinearProbes(Probes):
    """A task that trains linear classifiers on the blocks of a frozen backbone (see `LinearProtocol`).

    One more classifier reads the average of the last block ("final").
    """

    pools: tuple[Pool, ...]
    batchnorm: Literal["affine", "plain"] | None

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        return ProbeHead(self.block_shapes(), self.num_classes, self.pools, self.batchnorm, self.head_std)


class Heads(nn.Module):
    """A module of classifiers, by name; it computes in float32, even under autocast.

    Each reads the block of `blocks`, from 1 (0 is the last one), after its pool if `pools` has one.
    """

    def __init__(
        self, classifiers: Mapping[str, nn.Module], blocks: Mapping[str, int], pools: Mapping[str, Pool]
    ):
        super().__init__()
        self.classifiers, self.blocks, self.pools = nn.ModuleDict(classifiers), blocks, pools

    @override
    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the logits [B, num_classes] of each classifier, by its name: "B1", "final" or "conv_B2"."""
        outputs = {}
        with torch.autocast(features[0].device.type, enabled=False):
            for name, classifier in self.classifiers.items():
                block = features[self.blocks[name] - 1].float()
                outputs[name] = classifier(pooled(block, self.pools[name]) if self.pools else block)
        return outputs


class ProbeHead(Heads):
    """A module of the linear classifiers of all blocks.

    `shapes` has (channels, height, width) of each block, and `widths` the number of features of each
    classifier. Blocks after those of `pools`, such as AlexNet's fully-connected ones, are averaged.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        num_classes: int,
        pools: Sequence[Pool],
        batchnorm: Literal["affine", "plain"] | None,
        std: float | None = None,
    ):
        if len(shapes) < len(pools):
            raise ValueError(
                f"the backbone has {number_of(len(shapes), 'block')}: this protocol scores B1 to "
                f"B{len(pools)}; give --protocol moco, which scores the last block alone"
            )
        numbers = {f"B{i}": i for i in range(1, len(shapes) + 1)} if pools else {}
        numbers[FINAL] = 0
        of_blocks = {f"B{i}": pool for i, pool in enumerate(pools, 1)}
        parts: dict[str, nn.Module] = {}
        widths: dict[str, int] = {}
        for name, number in numbers.items():
            shape, layers = shapes[number - 1], dict[str, nn.Module]()
            widths[name] = pooled_width(shape, of_blocks.get(name, WHOLE))
            if batchnorm is not None:
                layers["norm"] = nn.BatchNorm2d(shape[0], affine=batchnorm == "affine")
            layers |= {"flatten": nn.Flatten(), "linear": linear(widths[name], num_classes, std)}
            parts[name] = nn.Sequential(OrderedDict(layers))
        super().__init__(parts, numbers, {name: of_blocks.get(name, WHOLE) for name in numbers})
        self.widths = widths


def best_block_lines(numbers: Mapping[str, float], num: int) -> list[str]:
    """Return which block has the highest of scores in percent, such as top1_B1 or top1_conv_B2.

    Papers report this score for other data than ImageNet (PSL, Table 9). "final" counts as no block. There is
    a line for each kind of classifier on several blocks. If the best block is above the last one by more than
    two standard errors of `num` images, it says what takes the block.
    """
    by_kind = dict[str, dict[str, float]]()
    for name, value in numbers.items():
        if match := re.fullmatch(r"top1_(?:(\w+)_)?(B\d+)", name):
            by_kind.setdefault(match[1] or "", {})[match[2]] = value
    return [_best_block(kind, of_kind, num) for kind, of_kind in by_kind.items() if len(of_kind) > 1]


def _best_block(kind: str, scores: Mapping[str, float], num: int) -> str:
    best, last = max(scores, key=scores.__getitem__), max(scores, key=lambda block: int(block[1:]))
    beginning = f"best of {len(scores)} blocks{f' by {kind}' if kind else ''}: {best}"
    above = scores[best] - scores[last]
    if above <= 100 * two_standard_errors(scores[last] / 100, num):
        return f"{beginning}, validation top-1 {scores[best]:.1f} %"
    return (
        f"{beginning} ({scores[best]:.1f} %), {above:.1f} points above the last, {last}: give --block {best} "
        "to fastpsl retrieve, tsne, features and eval knn"
    )


def probe_sgd(
    named_parameters: Iterable[tuple[str, nn.Parameter]], momentum: float, weight_decay: float, nesterov: bool
) -> torch.optim.SGD:
    """Build VISSL's SGD for probes: it decays weights and biases of the classifiers, but not BatchNorm's."""
    # `sgd` does not decay parameters with the name of a bias.
    return sgd(
        (("bias" if ".norm." in name else "weight", parameter) for name, parameter in named_parameters),
        momentum=momentum,
        weight_decay=weight_decay,
        nesterov=nesterov,
    )


KINDS = ("conv", "fc1", "fc2", "fc3")
# The width of a hidden layer, as in RotNet's MultLayer and AET's FC2: 20 units per class, at most 2048.
HIDDEN_PER_CLASS, MAX_HIDDEN = 20, 2048


class BlockHead(NamedTuple):
    """A classifier on one block."""

    name: str  # kind and block, such as conv_B2
    kind: str  # one of KINDS
    block: int  # from 1


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
        shapes, num = self.block_shapes(), self.num_classes
        parts = {head.name: classifier(head.kind, shapes[head.block - 1], num) for head in self.heads}
        return Heads(parts, {head.name: head.block for head in self.heads}, {})


@dataclass(kw_only=True)
class FewLabelBlockProbes(FewLabels, BlockProbes):
    """A `BlockProbes` task that learns from a few images of each class (SSL++, Table VIII)."""


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
