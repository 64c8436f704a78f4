"""SobelXY: two channels out, the grey picture's gradients along x and y, which DeepCluster and UIC show the network.

    grey = (R + G + B) / 3      gx = [1 2 1]ᵀ [-1 0 1] / 8      gy = [-1 0 1]ᵀ [1 2 1] / 8

with the border repeated, so that black pictures and white ones have no gradients, and no frame either.
DeepCluster has -8 gx and -8 gy of normalised pixels, padded with zeros, which draws a frame: SOBEL_XY_STD brings ours to its
scale, and its published weights read ours with the first convolution's sign turned.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.layout import finish, result_dtype, to_float32
from fastpsl.kernels.sobel import spatial_gradients

# Of both channels, whose mean is 0: ImageNet's usual std, a mean over colours, over the kernels' divisor.
SOBEL_XY_STD = 0.226 / 8


@dataclass(frozen=True)
class SobelXY:
    """Every sample's gradients alone: the last op of a view."""

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """{}: nothing is random."""
        return {}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """[B, 3, H, W] uint8 or floating in [0, 1] → [B, 2, H, W] = (gx, gy) in [-0.5, 0.5], float32 for uint8, else as it
        came, channels-last."""
        return finish(gradients(to_float32(images).mean(1, keepdim=True)), result_dtype(images))


def gradients(grey: Tensor) -> Tensor:
    """Return both gradients of grey pictures as two channels.

    Args:
        grey: [B, 1, H, W] float32.

    Returns:
        [B, 2, H, W] float32: gx and gy of the definition above.
    """
    return torch.cat(spatial_gradients(grey), 1)
