"""Linear probes: classifiers on frozen blocks, all of them in one pass (psl.txt, section 4.2; uic.txt, section 4.3)."""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fastpsl.backbones.backbone import Backbone
from fastpsl.evaluation.protocols import PROTOCOLS, WHOLE, Pool, pooled
from fastpsl.kernels.draws import Keys
from fastpsl.optimisers import sgd
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.views import ViewSpec
from fastpsl.plan import Stage
from fastpsl.stage import Metrics, Trunk
from fastpsl.tasks.classify import (
    Classify,
    linear,
    masked_cross_entropy,
    top_right,
)

FINAL = "final"


@dataclass(kw_only=True)
class LinearProbes(Classify):
    """A classifier on each block of a frozen backbone, and one on the last block's average ("final"); independent of each other.

    backbone: that of the job, on whose blocks a first picture is tried for the sizes. pools, batchnorm, head_std: see
    `protocols.Protocol`. more_crops: held-out views besides `held_out_view`, whose softmaxes are averaged with its own.

    Every classifier's loss counts once in the sum, so that each learns as if it were alone.
    """

    backbone: Backbone
    pools: tuple[Pool, ...] = PROTOCOLS["vissl"].pools
    batchnorm: Literal["affine", "plain"] | None = "affine"
    more_crops: tuple[ViewSpec, ...] = ()

    def held_out_views(self, level: int) -> tuple[ViewSpec, ...]:
        return (self.held_out_view, *self.more_crops)

    def head(self, level: int, channels: int) -> nn.Module:
        shapes = [tuple(features.shape[1:]) for features in self._features_of_a_picture()]
        return ProbeHead(shapes, self.num_classes, self.pools, self.batchnorm, self.head_std)

    @torch.no_grad()
    def _features_of_a_picture(self) -> list[Tensor]:
        """Of every block, of one black picture, with running statistics that stay as they are."""
        view, device = self.held_out_view, next(self.backbone.parameters()).device
        side, last = view.crop.size_px, self.backbone.num_blocks
        draws = view.draw(Keys(0, 0, np.zeros(1, np.int64)))
        on_device = [
            {name: torch.from_numpy(value).to(device) for name, value in draw.items()} for draw in draws
        ]
        picture = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)
        picture = picture.contiguous(memory_format=torch.channels_last)
        modes = [(module, module.training) for module in self.backbone.modules()]
        trunk = Trunk(self.backbone, Stage("sizes", 1, last + 1, last, 1)).eval()
        outputs = trunk.features(view.apply(picture, on_device, torch.float32))
        for module, training in modes:
            module.training = training
        return outputs

    def loss(
        self, trunk: Trunk, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Sum of all classifiers' cross-entropies. While training, top1 of "final" alone; held out, top1 and top5 of each.

        Held out, several crops of a picture are one answer, the mean of their softmaxes, as DeepCluster has it; UIC does not say.
        """
        valid = (batch.indices >= 0).float()
        num, total = valid.sum(), torch.zeros((), device=valid.device)
        metrics: Metrics = {}
        crops: list[dict[str, Tensor]] = [head(trunk.features(images)) for images in inputs]
        for name in crops[0]:
            logits = log_mean_softmax([outputs[name] for outputs in crops])
            total = total + masked_cross_entropy(logits, batch.labels, valid)
            if name == FINAL or not head.training:
                metrics |= top_right(logits, batch.labels, valid, f"_{name}")
        if head.training:  # the screen has a line for few numbers
            metrics = {name: value for name, value in metrics.items() if name.startswith("top1")}
        return total, {"loss": (total.detach() * num, num)} | metrics


def log_mean_softmax(logits: Sequence[Tensor]) -> Tensor:
    """Logits [B, classes] of each crop to logits [B, classes] of all: of the mean of their softmaxes; of one crop its own."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([crop.log_softmax(1) for crop in logits]).logsumexp(0) - math.log(len(logits))


class ProbeHead(nn.Module):
    """Features of B1, B2, … to {"B1": logits [B, num_classes], …, "final": logits}, in float32 whatever autocast does.

    shapes: (channels, height, width) of each block. `widths`: the number of features of each classifier. Blocks after those of
    `pools`, such as AlexNet's fully-connected ones, are averaged over their maps.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        num_classes: int,
        pools: Sequence[Pool] = PROTOCOLS["vissl"].pools,
        batchnorm: Literal["affine", "plain"] | None = "affine",
        std: float | None = None,
    ):
        super().__init__()
        if len(shapes) < len(pools):
            raise ValueError(
                f"a backbone of {len(shapes)} blocks: this protocol has pools for B1 to B{len(pools)}; give --protocol moco"
            )
        parts = [
            (f"B{i + 1}", shape, pools[i] if i < len(pools) else WHOLE) for i, shape in enumerate(shapes)
        ]
        parts = [*(parts if pools else []), (FINAL, shapes[-1], WHOLE)]
        self.pools = {name: pool for name, _, pool in parts}
        self.widths: dict[str, int] = {}
        self.classifiers = nn.ModuleDict()
        for name, (channels, *size), pool in parts:
            self.widths[name] = pooled(torch.zeros(1, channels, *size), pool).numel()
            layers: dict[str, nn.Module] = {}
            if batchnorm is not None:
                layers["norm"] = nn.BatchNorm2d(channels, affine=batchnorm == "affine")
            layers |= {"flatten": nn.Flatten(), "linear": linear(self.widths[name], num_classes, std)}
            self.classifiers[name] = nn.Sequential(OrderedDict(layers))

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Features of all blocks, B1 first."""
        outputs = {}
        with torch.autocast(features[0].device.type, enabled=False):
            for i, (name, classifier) in enumerate(self.classifiers.items()):
                block = features[-1] if name == FINAL else features[i]
                outputs[name] = classifier(pooled(block.float(), self.pools[name]))
        return outputs


def probe_sgd(
    named_parameters: Iterable[tuple[str, nn.Parameter]], momentum: float, weight_decay: float, nesterov: bool
) -> torch.optim.SGD:
    """SGD as VISSL's probes have it: weights and biases of the classifiers decay, BatchNorm's do not."""
    # `sgd` leaves undecayed what is called a bias.
    return sgd(
        (("bias" if ".norm." in name else "weight", parameter) for name, parameter in named_parameters),
        momentum=momentum,
        weight_decay=weight_decay,
        nesterov=nesterov,
    )
