"""Decode a backbone's last vector (AlexNet's fc7) to a map, for tasks with a target at each position."""

import math

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

FIRST_SIDE, FIRST_WIDTH, LEAST_WIDTH = 4, 512, 64


class FromVectors(nn.Module):
    """A decoder from [B, channels, 1, 1] to [B, num_maps, side, side], that of Context-Encoder.

    A transposed convolution makes 4 x 4 positions of 512 maps. Further ones, 4 x 4 with stride 2, double the
    side and halve the width, with BatchNorm and ReLU between them. The result is interpolated if `side` is
    not 4, 8, 16, … SSL++ does not state the decoder behind its AlexNet's fc7.
    """

    def __init__(self, channels: int, num_maps: int, side: int):
        super().__init__()
        num_doublings = max(1, math.ceil(math.log2(side / FIRST_SIDE)))
        widths = [max(LEAST_WIDTH, FIRST_WIDTH >> i) for i in range(num_doublings)]
        layers: list[nn.Module] = [nn.ConvTranspose2d(channels, widths[0], FIRST_SIDE, bias=False)]
        for before, after in zip(widths, (*widths[1:], num_maps), strict=True):
            layers += [nn.BatchNorm2d(before), nn.ReLU(inplace=True)]
            layers.append(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1))
        self.side, self.decode = side, nn.Sequential(*layers)

    @override
    def forward(self, vectors: Tensor) -> Tensor:
        maps: Tensor = self.decode(vectors)
        if maps.shape[-1] != self.side:
            maps = F.interpolate(maps, size=(self.side, self.side), mode="bilinear")
        return maps
