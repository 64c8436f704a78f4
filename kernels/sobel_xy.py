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
from kornia.filters import spatial_gradient
from torch import Tensor

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.layout import finish, result_dtype, to_float32

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
    """[B, 1, H, W] float32 → [B, 2, H, W] float32: the definition above."""
    if not grey.numel():
        return grey.expand(-1, 2, -1, -1)  # Kornia takes no empty batch
    # In TF32, torch's default on a GPU (cudnn.allow_tf32), they are at most 2^-12 off: 0.009 on the normalised output.
    with torch.autocast(grey.device.type, enabled=False):  # or the convolution is rounded to half
        return spatial_gradient(grey, mode="sobel", normalized=True)[:, 0]
