"""Train linear probes: classifiers on frozen blocks, in one pass (PSL, section 4.2; UIC, 4.3)."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.optim.sgd_adam import sgd
from fastpsl.evaluation.probes import Probes
from fastpsl.evaluation.protocols import WHOLE, Pool, pooled, pooled_width
from fastpsl.tasks.classify import linear

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


class ProbeHead(nn.Module):
    """A module of the linear classifiers of all blocks; it computes in float32, even under autocast.

    Blocks after those of `pools`, such as AlexNet's fully-connected ones, are averaged over their maps.
    `widths` has the number of features of each classifier.

    Args:
        shapes: (channels, height, width) of each block.
        num_classes: Number of logits of each classifier.
        pools: As in `LinearProtocol`; more pools than blocks are a ValueError.
        batchnorm: As in `LinearProtocol`.
        std: `head_std` of `LinearProtocol`.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        num_classes: int,
        pools: Sequence[Pool],
        batchnorm: Literal["affine", "plain"] | None,
        std: float | None = None,
    ):
        super().__init__()
        if len(shapes) < len(pools):
            raise ValueError(
                f"a backbone of {len(shapes)} blocks: this protocol scores B1 to B{len(pools)}; "
                "give --protocol moco, which scores the last block alone"
            )
        parts = [
            (f"B{i + 1}", shape, pools[i] if i < len(pools) else WHOLE) for i, shape in enumerate(shapes)
        ]
        parts = [*(parts if pools else []), (FINAL, shapes[-1], WHOLE)]
        self.pools = {name: pool for name, _, pool in parts}
        self.widths: dict[str, int] = {}
        self.classifiers = nn.ModuleDict()
        for name, shape, pool in parts:
            self.widths[name] = pooled_width(shape, pool)
            layers: dict[str, nn.Module] = {}
            if batchnorm is not None:
                layers["norm"] = nn.BatchNorm2d(shape[0], affine=batchnorm == "affine")
            layers |= {"flatten": nn.Flatten(), "linear": linear(self.widths[name], num_classes, std)}
            self.classifiers[name] = nn.Sequential(OrderedDict(layers))

    @override
    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the logits [B, num_classes] of each classifier: "B1", "B2", … and "final".

        Args:
            features: Maps [B, C, h, w] of all blocks, B1 first.
        """
        outputs = {}
        with torch.autocast(features[0].device.type, enabled=False):
            for i, (name, classifier) in enumerate(self.classifiers.items()):
                block = features[-1] if name == FINAL else features[i]
                outputs[name] = classifier(pooled(block.float(), self.pools[name]))
        return outputs


def best_block_lines(numbers: Mapping[str, float]) -> list[str]:
    """Return a line that names the block with the highest score, or no line where blocks are not scored.

    Papers report this score for other data than ImageNet (PSL, Table 9). "final" counts as no block.

    Args:
        numbers: Scores in percent, such as top1_B1.
    """
    scores = {name[5:]: value for name, value in numbers.items() if name.startswith("top1_B")}
    if not scores:
        return []
    best = max(scores, key=scores.__getitem__)
    return [f"best of {len(scores)} blocks: {best}, validation top-1 {scores[best]:.1f} %"]


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
