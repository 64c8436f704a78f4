"""Networks that give every pixel scores of the classes: FCN-32s on AlexNet and VGG, torchvision's FCN on the others.

Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation" (2015), and their published nets; torchvision,
`models/segmentation/fcn.py`. Parameters of the blocks stay the backbone's own, by name and shape, whatever they are run as.
"""

from dataclasses import dataclass
from math import isqrt
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.segmentation.fcn import FCNHead

from fastpsl.engine.trunk import Trunk
from fastpsl.models.backbone import Backbone

STRIDE_PX = 32
# torchvision's head stands on B5, its auxiliary one on B4; dilated are these two.
LAST_BLOCK = 5


class Network(Protocol):
    @property
    def last_block(self) -> int:
        """The last that runs."""
        ...

    def head(self, num_classes: int) -> nn.Module:
        """What stands on the blocks, with first weights; num_classes: with the background."""
        ...

    def scores(self, trunk: Trunk, head: nn.Module, images: Tensor) -> list[Tensor]:
        """Normalised pictures [B, channels, H, W] to float32 scores [B, num_classes, H, W]; behind them, those of an auxiliary head."""
        ...


def network_of(backbone: Backbone, auxiliary: bool) -> Network:
    """FCN-32s where there are fc6 and fc7, else torchvision's FCN, for which the backbone is dilated here, in place.

    auxiliary: with torchvision's auxiliary head on B4; FCN-32s has none. ValueError where there is no B5.
    """
    if "fc7" in backbone.block_names:
        return FCN32s(*GEOMETRIES[backbone.name], width=backbone.channels[-1])
    if backbone.num_blocks < LAST_BLOCK:
        raise ValueError(
            f"--backbone {backbone.name}: FCN's head stands on B{LAST_BLOCK}, and this one has B1 to B{backbone.num_blocks}; "
            f"give one of {LAST_BLOCK} blocks or more, such as resnet50 or alexnet"
        )
    dilate(backbone)
    return DilatedFCN(backbone.channels[LAST_BLOCK - 1], backbone.channels[LAST_BLOCK - 2], auxiliary)


# name → (border_px, side_px, first_px) of FCN32s. 100 px of zeros around the picture are published; conv1 has 2 (AlexNet) or 1 of them
# (VGG) itself.
GEOMETRIES = {"alexnet": (98, 191, 13.0), "alexnet_rotnet": (98, 191, 13.0), "vgg16": (99, 192, 12.5)}


@dataclass(frozen=True)
class FCN32s:
    """fc6 and fc7 as convolutions, a 1x1 convolution that begins with zeros, and its scores laid out bilinearly, 32 px apart.

    border_px: zeros around a picture. side_px: pictures of side_px + 32 n px are read whole and give n scores a side. first_px: where
    in the picture the first score's middle is. The published net lays scores out by a fixed deconvolution (kernel 63, VGG's 64, stride
    32) and crops it by 18 px (19): `laid_out` gives the same numbers. It rounds the sides of pooled maps up, which ours round down: so
    zeros follow to the right and below up to a size that is read whole, which gives as many scores (one more where its conv1 leaves out
    the last 1 to 3 rows).
    """

    border_px: int
    side_px: int
    first_px: float
    width: int
    last_block: int = 7

    def head(self, num_classes: int) -> nn.Module:
        score = nn.Conv2d(self.width, num_classes, 1)
        nn.init.zeros_(score.weight)
        assert score.bias is not None
        nn.init.zeros_(score.bias)
        return score

    def scores(self, trunk: Trunk, head: nn.Module, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        *convolutions, fc6, fc7 = trunk.learning
        maps = trunk.run(convolutions, F.pad(images, (*self._borders(width), *self._borders(height))))
        scores = head(as_convolution(fc7, as_convolution(fc6, maps)))
        return [laid_out(scores, height, width, self.first_px)]

    def _borders(self, side_px: int) -> tuple[int, int]:
        """Zeros before and behind a side of so many px."""
        num = -((self.side_px - side_px - 2 * self.border_px) // STRIDE_PX)
        return self.border_px, STRIDE_PX * num + self.side_px - side_px - self.border_px


def as_convolution(block: nn.Module, maps: Tensor) -> Tensor:
    """A block of fully-connected layers on maps [B, C, h, w] of any size: at each position what the block says of the window there.

    A linear layer of C * k * k inputs is a convolution of k x k by the same weights, [B, outputs, h-k+1, w-k+1]; a BatchNorm1d
    normalises over all positions. Layers that bring maps to one size, or lay them out as vectors, are left out.
    """
    for layer in _layers(block):
        if isinstance(layer, nn.Linear):
            side = isqrt(layer.in_features // maps.shape[1])
            assert side**2 * maps.shape[1] == layer.in_features, (layer, maps.shape)
            maps = F.conv2d(maps, layer.weight.view(-1, maps.shape[1], side, side), layer.bias)
        elif isinstance(layer, _BatchNorm):
            maps = layer(maps.flatten(2)).view_as(maps)
        elif not isinstance(layer, nn.AdaptiveAvgPool2d | nn.Flatten | nn.Unflatten):
            maps = layer(maps)
    return maps


def _layers(block: nn.Module) -> list[nn.Module]:
    return [part for part in block.modules() if not isinstance(part, nn.Sequential)]


def laid_out(scores: Tensor, height: int, width: int, first_px: float) -> Tensor:
    """Scores [B, C, h, w] to float32 [B, C, height, width]: score i is that of pixel first_px + 32 i, and linear between two."""
    with torch.autocast(scores.device.type, enabled=False):
        rows, columns = (
            _weights(pixels, positions, first_px, scores.device)
            for pixels, positions in zip((height, width), scores.shape[-2:], strict=True)
        )
        return rows @ scores.float() @ columns.T


def _weights(pixels: int, positions: int, first_px: float, device: torch.device) -> Tensor:
    """float32 [pixels, positions]: what a score counts for a pixel."""
    middles = first_px + STRIDE_PX * torch.arange(positions, device=device)
    distances = (torch.arange(pixels, device=device)[:, None] - middles).abs()
    return (1 - distances / STRIDE_PX).clamp(min=0)


@dataclass(frozen=True)
class DilatedFCN:
    """torchvision's: FCNHead on B5 and, where `auxiliary`, another on B4, scores enlarged bilinearly. channels: of B5; of B4."""

    channels: int
    auxiliary_channels: int
    auxiliary: bool
    last_block: int = LAST_BLOCK

    def head(self, num_classes: int) -> nn.Module:
        widths = (self.channels, self.auxiliary_channels)[: 1 + self.auxiliary]
        return nn.ModuleList(FCNHead(channels, num_classes) for channels in widths)

    def scores(self, trunk: Trunk, head: nn.Module, images: Tensor) -> list[Tensor]:
        assert isinstance(head, nn.ModuleList)
        features = reversed(trunk.features(images)[-2:])
        return [
            F.interpolate(one(maps).float(), images.shape[-2:], mode="bilinear", align_corners=False)
            for one, maps in zip(head, features, strict=False)
        ]


def dilate(backbone: Backbone) -> None:
    """B4 and B5 without strides, in place: what follows one is dilated as often, so that weights see what they saw.

    At every second (fourth) position the maps are those of the backbone before. Of bottlenecks as torchvision's
    `replace_stride_with_dilation`, which refuses basic blocks: of these the strided 3x3 is dilated as before its stride, all later ones as
    behind it. Nothing changes where B4 and B5 have no strides. Call it once.
    """
    before = 1
    for block in backbone.blocks()[LAST_BLOCK - 2 : LAST_BLOCK]:
        convolutions = [part for part in block.modules() if isinstance(part, nn.Conv2d)]
        after = before * max(conv.stride[0] for conv in convolutions)
        for conv in convolutions:
            dilation = before if conv.stride[0] > 1 else after
            side = conv.kernel_size[0]
            conv.stride, conv.dilation, conv.padding = (1, 1), (dilation,) * 2, (dilation * (side // 2),) * 2
        before = after
