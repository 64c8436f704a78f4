"""A decoder from a backbone's last vector to a map, for tasks that must say something of each position (AlexNet's fc7)."""

import math

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

FIRST_SIDE, FIRST_WIDTH, LEAST_WIDTH = 4, 512, 64


class FromVectors(nn.Module):
    """[B, channels, 1, 1] → [B, num_maps, side, side].

    Context-Encoder's decoder: a transposed convolution to 4 x 4 positions of 512 maps, then doublings of the side by 4 x 4 ones of stride 2,
    each of half the width, with BatchNorm and ReLU between them; interpolated where `side` is no 4, 8, 16, … SSL++ does not say what its
    AlexNet has behind fc7.
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
