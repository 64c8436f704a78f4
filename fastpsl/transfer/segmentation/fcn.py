"""Networks that score the classes of every pixel: FCN-32s on AlexNet and VGG, else torchvision's FCN.

Sources: Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation" (2015), with
their published nets, and torchvision's `models/segmentation/fcn.py`. The parameters of the blocks keep their
names and shapes in the backbone.
"""

from dataclasses import dataclass
from math import isqrt
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.segmentation.fcn import FCNHead

from fastpsl.engine.stage_blocks import StageBlocks
from fastpsl.models.backbone import Backbone
from fastpsl.models.own_backbone import Wrapped

STRIDE_PX = 32
# torchvision's head is on B5 and its auxiliary head on B4; these two blocks are dilated.
LAST_BLOCK = 5


class Network(Protocol):
    """A network for segmentation on the blocks of a backbone."""

    @property
    def last_block(self) -> int:
        """The number of the last block that runs."""
        ...

    def head(self, num_classes: int) -> nn.Module:
        """Return the initialised layers above the blocks; `num_classes` includes the background."""
        ...

    def scores(self, blocks: StageBlocks, head: nn.Module, images: Tensor) -> list[Tensor]:
        """Score the classes of every pixel.

        Args:
            blocks: The backbone's blocks.
            head: Made by `head`.
            images: Normalised images [B, channels, H, W].

        Returns:
            float32 [B, num_classes, H, W]; then the scores of an auxiliary head, if there is one.
        """
        ...


def network_of(backbone: Backbone, auxiliary: bool) -> Network:
    """Return FCN-32s if the backbone has fc6 and fc7, else torchvision's FCN.

    Args:
        backbone: The blocks. For torchvision's FCN they are dilated here, in place.
        auxiliary: Whether torchvision's FCN gets its auxiliary head on B4. FCN-32s has none.

    Raises:
        ValueError: If there is no B5, or its strides may be elsewhere than in convolutions.
    """
    if backbone.name in GEOMETRIES:
        return FCN32s(*GEOMETRIES[backbone.name], width=backbone.channels[-1])
    if backbone.num_blocks < LAST_BLOCK:
        raise ValueError(
            f"--backbone {backbone.name}: FCN's head stands on B{LAST_BLOCK}, and this one has B1 to "
            f"B{backbone.num_blocks}; give one of {LAST_BLOCK} blocks or more, such as resnet50 or alexnet"
        )
    if isinstance(backbone, Wrapped):
        raise ValueError(  # noqa: TRY004
            f"--backbone {backbone.name}: FCN dilates B4 and B5, which is right for fastpsl's own backbones "
            "alone; give one of those, such as resnet50"
        )
    dilate(backbone)
    return DilatedFCN(backbone.channels[LAST_BLOCK - 1], backbone.channels[LAST_BLOCK - 2], auxiliary)


# The first three fields of FCN32s. The published nets have 100 px of zeros around the image, 2 (AlexNet) or 1
# (VGG) of them in conv1.
GEOMETRIES = {"alexnet": (98, 191, 13.0), "alexnet_rotnet": (98, 191, 13.0), "vgg16": (99, 192, 12.5)}


@dataclass(frozen=True)
class FCN32s:
    """A network of fc6 and fc7 as convolutions, a 1x1 convolution and bilinear upsampling from 32 px.

    The 1x1 convolution is initialised with zeros. The published net upsamples by a fixed deconvolution
    of kernel 63 (VGG's 64) and stride 32. It crops the result by 18 px (19). `laid_out` gives the same
    numbers.
    The published net rounds the sides of pooled maps up, and ours rounds them down. Zeros are therefore added
    at the right and at the bottom, up to a size that is read whole. This gives as many scores, or one more
    where the published conv1 leaves out the last 1 to 3 rows.
    """

    border_px: int  # zeros around an image
    side_px: int  # images of side_px + 32 n px are read whole and give n scores a side
    first_px: float  # position in the image of the first score's middle
    width: int  # channels of fc7
    last_block: int = 7  # fc7

    def head(self, num_classes: int) -> nn.Module:
        score = nn.Conv2d(self.width, num_classes, 1)
        for parameter in score.parameters():
            nn.init.zeros_(parameter)
        return score

    def scores(self, blocks: StageBlocks, head: nn.Module, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        *convolutions, fc6, fc7 = blocks.learning
        maps = blocks.run(convolutions, F.pad(images, (*self._borders(width), *self._borders(height))))
        scores = head(as_convolution(fc7, as_convolution(fc6, maps)))
        return [laid_out(scores, height, width, self.first_px)]

    def _borders(self, side_px: int) -> tuple[int, int]:
        """Return the numbers of zeros before and after a side."""
        num = -((self.side_px - side_px - 2 * self.border_px) // STRIDE_PX)
        return self.border_px, STRIDE_PX * num + self.side_px - side_px - self.border_px


def as_convolution(block: nn.Module, maps: Tensor) -> Tensor:
    """Run a block of fully-connected layers on maps of any size, once for the window at each position.

    A linear layer with C * k * k inputs becomes a convolution of k x k with the same weights. A BatchNorm1d
    normalises over all positions. Layers that resize maps to one size or flatten them are left out.
    """
    for layer in (part for part in block.modules() if not isinstance(part, nn.Sequential)):
        if isinstance(layer, nn.Linear):
            side = isqrt(layer.in_features // maps.shape[1])
            assert side**2 * maps.shape[1] == layer.in_features, (layer, maps.shape)
            maps = F.conv2d(maps, layer.weight.view(-1, maps.shape[1], side, side), layer.bias)
        elif isinstance(layer, _BatchNorm):
            maps = layer(maps.flatten(2)).view_as(maps)
        elif not isinstance(layer, nn.AdaptiveAvgPool2d | nn.Flatten | nn.Unflatten):
            maps = layer(maps)
    return maps


def laid_out(scores: Tensor, height: int, width: int, first_px: float) -> Tensor:
    """Interpolate scores [B, C, h, w] linearly to float32 [B, C, height, width].

    Score i is that of pixel first_px + 32 i.
    """
    with torch.autocast(scores.device.type, enabled=False):
        rows, columns = (
            _weights(pixels, positions, first_px, scores.device)
            for pixels, positions in zip((height, width), scores.shape[-2:], strict=True)
        )
        return rows @ scores.float() @ columns.T


def _weights(pixels: int, positions: int, first_px: float, device: torch.device) -> Tensor:
    """Return each score's weight for each pixel, float32 [pixels, positions]."""
    middles = first_px + STRIDE_PX * torch.arange(positions, device=device)
    distances = (torch.arange(pixels, device=device)[:, None] - middles).abs()
    return (1 - distances / STRIDE_PX).clamp(min=0)


@dataclass(frozen=True)
class DilatedFCN:
    """A network of torchvision's FCN heads with bilinear upsampling."""

    channels: int  # of B5, which carries an FCNHead
    auxiliary_channels: int  # of B4
    auxiliary: bool  # whether B4 carries another FCNHead
    last_block: int = LAST_BLOCK

    def head(self, num_classes: int) -> nn.Module:
        widths = (self.channels, self.auxiliary_channels) if self.auxiliary else (self.channels,)
        return nn.ModuleList(FCNHead(channels, num_classes) for channels in widths)

    def scores(self, blocks: StageBlocks, head: nn.Module, images: Tensor) -> list[Tensor]:
        assert isinstance(head, nn.ModuleList)
        features = reversed(blocks.features(images)[-2:])
        return [
            F.interpolate(fcn(maps).float(), images.shape[-2:], mode="bilinear", align_corners=False)
            for fcn, maps in zip(head, features, strict=False)
        ]


def dilate(backbone: Backbone) -> None:
    """Replace the strides of B4 and B5 by dilations, in place.

    The convolutions after a stride are dilated by it, so that their weights see the same inputs as before. At
    every second (fourth) position the maps equal those of the original backbone. For bottlenecks this is
    torchvision's `replace_stride_with_dilation`, which refuses basic blocks. In basic blocks the strided 3x3
    convolution keeps the dilation from before its stride, and later ones have the one from after it. Nothing
    changes if B4 and B5 have no strides. Call it only once.
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
