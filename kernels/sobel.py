"""Sobel with probability p: each channel becomes the size of its gradient.

    gx = [1 2 1]ᵀ [-1 0 1] / 8      gy = [-1 0 1]ᵀ [1 2 1] / 8      out = sqrt(gx² + gy²)

with the border repeated, channel by channel, so three channels go in and out. The kernels' absolute values
add up to 1 (Kornia's `normalized`), so images in [0, 1] give values in [0, 0.71]. Kornia's own `sobel` adds 1e-6 under
the root, for gradients that an augmentation does not need; so only its spatial gradient is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from kornia.filters import spatial_gradient
from torch import Tensor

from fastpsl.kernels.draws import Keys, Slot, uniforms
from fastpsl.kernels.layout import check_probability, finish, per_sample, result_dtype, to_float32


@dataclass(frozen=True)
class Sobel:
    """Replaces each sample by its channels' gradient sizes with probability `p`."""

    p: float = 0.2

    def __post_init__(self) -> None:
        check_probability(self.p)

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """{"apply": bool [B]}"""
        return {"apply": uniforms(keys, Slot.SOBEL, 1)[:, 0] < self.p}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """[B, C, H, W] uint8 or floating → float32 for uint8, else as it came; [0, 1], channels-last."""
        x = finish(to_float32(images), torch.float32)
        return finish(torch.where(per_sample(draw["apply"]), gradient_size(x), x), result_dtype(images))


def gradient_size(x: Tensor) -> Tensor:
    """[B, C, H, W] float32 → the same shape: the definition above."""
    if not x.numel():
        return x  # Kornia takes no empty batch
    # On a GPU the convolution runs in TF32, torch's default (cudnn.allow_tf32): at most 1e-3 off on the normalised output.
    with torch.autocast(x.device.type, enabled=False):  # or the convolution is rounded to half
        gx, gy = spatial_gradient(x, mode="sobel", normalized=True).unbind(2)
    return torch.sqrt(gx * gx + gy * gy)
