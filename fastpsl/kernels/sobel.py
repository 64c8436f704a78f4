"""Sobel with a given probability: each channel becomes its gradient's magnitude.

    gx = [1 2 1]ᵀ [-1 0 1] / 8      gy = [-1 0 1]ᵀ [1 2 1] / 8      out = sqrt(gx² + gy²)

The border is repeated. Three channels go in and three come out. The absolute values of a kernel add up to 1,
so images in [0, 1] give values in [0, 0.71]. The gradients equal those of Kornia's
`spatial_gradient(normalized=True)` within 6e-8. Kornia's function is not used because it copies its kernel
from host memory in every call. On a GPU the host waits for that copy. Kornia's `sobel` adds 1e-6 under
the root for the sake of gradients, which an augmentation does not need.
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
    """A replacement of each sample by its channels' gradient magnitudes with probability `p`.

    The gradients are Sobel's, divided by 8, with the border repeated. Values are in [0, 0.71].

    Attributes:
        p: The probability, in [0, 1].

    Raises:
        ValueError: The probability is out of its range.
    """

    p: float = 0.2

    def __post_init__(self) -> None:
        check_probability(self.p)

    @property
    def channels(self) -> str | None:
        """The name of the channels, if every sample has them."""
        return "Sobel" if self.p >= 1 else None

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw "apply", bool [B]: whether to filter each sample."""
        return {"apply": uniforms(keys, Slot.SOBEL, 1)[:, 0] < self.p}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the images [B, C, H, W] in [0, 1], channels-last.

        Floating images keep their dtype, uint8 images become float32.
        """
        x = finish(to_float32(images), torch.float32)
        return finish(torch.where(per_sample(draw["apply"]), gradient_size(x), x), result_dtype(images))


def gradient_size(x: Tensor) -> Tensor:
    """Return sqrt(gx² + gy²), float32 [B, C, H, W], of `x`, float32 [B, C, H, W]."""
    gx, gy = spatial_gradients(x)
    return torch.sqrt(gx * gx + gy * gy)


def spatial_gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each channel's gradients along x and y, by sums of shifted images.

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
