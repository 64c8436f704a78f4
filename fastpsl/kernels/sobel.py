"""Sobel with probability p: each channel becomes the size of its gradient.

    gx = [1 2 1]ᵀ [-1 0 1] / 8      gy = [-1 0 1]ᵀ [1 2 1] / 8      out = sqrt(gx² + gy²)

with the border repeated, channel by channel, so three channels go in and out. The kernels' absolute values
add up to 1, so images in [0, 1] give values in [0, 0.71]. The gradients are those of Kornia's `spatial_gradient(normalized=True)` within
6e-8. It is not called: it makes its kernel anew from host memory in every call, and on a GPU the host waits for that copy. Kornia's `sobel`
adds 1e-6 under the root, for gradients that an augmentation does not need.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

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
    """Return the size of each channel's gradient.

    Args:
        x: [B, C, H, W] float32.

    Returns:
        [B, C, H, W] float32: sqrt(gx² + gy²) of the definition above.
    """
    gx, gy = spatial_gradients(x)
    return torch.sqrt(gx * gx + gy * gy)


def spatial_gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each channel's gradients along x and y, by sums of shifted pictures.

    Args:
        x: [B, C, H, W] float32; B may be 0.

    Returns:
        gx and gy of the definition above, each [B, C, H, W] float32.
    """
    if not x.numel():
        return x, x
    padded = functional.pad(x, (1, 1, 1, 1), mode="replicate")
    left, middle, right = padded[..., :-2], padded[..., 1:-1], padded[..., 2:]
    across, smooth = right - left, left + 2 * middle + right
    gx = (across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]) / 8
    gy = (smooth[..., 2:, :] - smooth[..., :-2, :]) / 8
    return gx, gy
