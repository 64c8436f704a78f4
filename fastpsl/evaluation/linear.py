"""Linear probes: classifiers on frozen blocks, all of them in one pass (psl.txt, section 4.2 and Tables 4 to 6)."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastpsl.backbones.backbone import Backbone
from fastpsl.kernels.draws import Keys
from fastpsl.optimisers import sgd
from fastpsl.pipelines.batch import Batch
from fastpsl.stage import Metrics, Trunk
from fastpsl.tasks.classify import (
    Classify,
    linear,
    masked_cross_entropy,
    top_right,
)

FINAL = "final"
# VISSL's average pools (kernel, stride, padding) of B1 to B5, by the side of the map that they are for: a picture of 224 px.
POOLS = {112: (10, 10, 4), 56: (16, 8, 0), 28: (13, 5, 0), 14: (8, 3, 0), 7: (6, 1, 0)}
# What they make of it: the side of the pooled map, of B1 to B5.
GRIDS = (12, 6, 4, 3, 2)


def pooled(features: Tensor, grid: int) -> Tensor:
    """Features [B, C, h, w] averaged to [B, C, grid, grid].

    By VISSL's pool where the map is as large as in its pictures of 224 px. In other sizes, which it does not have, adaptively to
    the same grid, and left as they are where the map is smaller than that.
    """
    side = features.shape[-1]
    if side in POOLS and features.shape[-2] == side:
        kernel, stride, padding = POOLS[side]
        if (side + 2 * padding - kernel) // stride + 1 == grid:
            return F.avg_pool2d(features, kernel, stride, padding)
    return F.adaptive_avg_pool2d(features, min(grid, *features.shape[-2:]))


@dataclass(kw_only=True)
class LinearProbes(Classify):
    """A classifier on each block of a frozen backbone, and one on the last block's average ("final"); independent of each other.

    backbone: that of the job, on whose blocks a first picture is tried for the sizes. blocks: whether B1, B2, … are probed, or
    "final" alone (MoCo's protocol). batchnorm: BatchNorm2d, affine, before each classifier (VISSL's). head_std: see Classify.

    Every classifier's loss counts once in the sum, so that each learns as if it were alone.
    """

    backbone: Backbone
    blocks: bool = True
    batchnorm: bool = True

    def head(self, level: int, channels: int) -> nn.Module:
        shapes = [tuple(features.shape[1:]) for features in self._features_of_a_picture()]
        return ProbeHead(shapes, self.num_classes, self.blocks, self.batchnorm, self.head_std)

    @torch.no_grad()
    def _features_of_a_picture(self) -> list[Tensor]:
        """Of every block, of one black picture, with running statistics that stay as they are."""
        view, device = self.held_out_view, next(self.backbone.parameters()).device
        side = view.crop.size_px
        draws = view.draw(Keys(0, 0, np.zeros(1, np.int64)))
        on_device = [
            {name: torch.from_numpy(value).to(device) for name, value in draw.items()} for draw in draws
        ]
        picture = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)
        picture = picture.contiguous(memory_format=torch.channels_last)
        features, outputs = view.apply(picture, on_device, torch.float32), []
        modes = [(module, module.training) for module in self.backbone.modules()]
        for block in self.backbone.blocks():
            features = block.eval()(features)
            outputs.append(features)
        for module, training in modes:
            module.training = training
        return outputs

    def loss(
        self, trunk: Trunk, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Sum of all classifiers' cross-entropies. While training, top1 of "final" alone; held out, top1 and top5 of each."""
        valid = (batch.indices >= 0).float()
        num, total = valid.sum(), torch.zeros((), device=valid.device)
        metrics: Metrics = {}
        for name, logits in head(trunk.features(inputs[0])).items():
            total = total + masked_cross_entropy(logits, batch.labels, valid)
            if name == FINAL or not head.training:
                metrics |= top_right(logits, batch.labels, valid, f"_{name}")
        if head.training:  # the screen has a line for few numbers
            metrics = {name: value for name, value in metrics.items() if name.startswith("top1")}
        return total, {"loss": (total.detach() * num, num)} | metrics


class ProbeHead(nn.Module):
    """Features of B1, B2, … to {"B1": logits [B, num_classes], …, "final": logits}, in float32 whatever autocast does.

    shapes: (channels, height, width) of each block. `widths`: the number of features of each classifier.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        num_classes: int,
        blocks: bool = True,
        batchnorm: bool = True,
        std: float | None = None,
    ):
        super().__init__()
        if blocks and len(shapes) != len(GRIDS):
            raise ValueError(
                f"a backbone of {len(shapes)} blocks: VISSL's protocol has pools for B1 to B{len(GRIDS)}; give --protocol moco"
            )
        parts = [
            (f"B{i}", shape, grid) for i, (shape, grid) in enumerate(zip(shapes, GRIDS, strict=False), 1)
        ]
        parts = [*(parts if blocks else []), (FINAL, shapes[-1], 1)]
        self.grids = {name: grid for name, _, grid in parts}
        self.widths: dict[str, int] = {}
        self.classifiers = nn.ModuleDict()
        for name, (channels, *size), grid in parts:
            small = torch.zeros(1, channels, *size)
            self.widths[name] = pooled(small, grid).numel()
            layers: dict[str, nn.Module] = {"norm": nn.BatchNorm2d(channels)} if batchnorm else {}
            layers |= {"flatten": nn.Flatten(), "linear": linear(self.widths[name], num_classes, std)}
            self.classifiers[name] = nn.Sequential(OrderedDict(layers))

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Features of all blocks, B1 first."""
        outputs = {}
        with torch.autocast(features[0].device.type, enabled=False):
            for i, (name, classifier) in enumerate(self.classifiers.items()):
                block = features[-1] if name == FINAL else features[i]
                outputs[name] = classifier(pooled(block.float(), self.grids[name]))
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
