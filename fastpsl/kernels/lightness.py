"""Lightness: CIE 1976 L* of sRGB, one channel out, over 100 so that it lies in [0, 1] as every image here does.

    linear = v / 12.92                        where v <= 0.04045, else ((v + 0.055) / 1.055)^2.4      (IEC 61966-2-1)
    Y      = 0.2126 R + 0.7152 G + 0.0722 B   of the linear values; white has Y = 1                   (IEC 61966-2-1)
    L*     = 116 f(Y) - 16,                   f(t) = t^(1/3) above (6/29)^3, else t / (3 (6/29)^2) + 4/29   (CIE 15)

Kornia's rgb_to_lab has the same formula with the weights of a matrix in six digits; it computes a* and b* besides.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.layout import finish, result_dtype, to_float32

WEIGHTS = (0.2126, 0.7152, 0.0722)
_DELTA = 6 / 29


def linear_rgb(x: Tensor) -> Tensor:
    """sRGB in [0, 1] → values in proportion to light, of the same shape and dtype."""
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def cie_f(t: Tensor) -> Tensor:
    """CIE's f of shares of white's X, Y or Z; the same shape and dtype."""
    return torch.where(t > _DELTA**3, t.clamp(min=_DELTA**3) ** (1 / 3), t / (3 * _DELTA**2) + 4 / 29)


def lightness(x: Tensor) -> Tensor:
    """[B, 3, H, W] float32 sRGB in [0, 1] → [B, 1, H, W] float32: L* / 100."""
    red, green, blue = linear_rgb(x).unbind(1)
    f = cie_f((red * WEIGHTS[0] + green * WEIGHTS[1] + blue * WEIGHTS[2])[:, None])
    return (1.16 * f - 0.16).clamp(0, 1)  # white is off 1, and black off 0, by rounding


@dataclass(frozen=True)
class Lightness:
    """Every sample's lightness alone: the input of a network that must not see colour, such as colorization's."""

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """{}: nothing is random."""
        return {}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """[B, 3, H, W] uint8 or floating → [B, 1, H, W], float32 for uint8, else as it came; [0, 1], channels-last."""
        return finish(lightness(to_float32(images)), result_dtype(images))
