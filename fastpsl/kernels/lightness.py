"""Lightness: CIE 1976 L* of sRGB in one channel, over 100 so that it lies in [0, 1] like all images here.

    linear = v / 12.92 for v <= 0.04045, else ((v + 0.055) / 1.055)^2.4                (IEC 61966-2-1)
    Y      = 0.2126 R + 0.7152 G + 0.0722 B of the linear values; white has Y = 1      (IEC 61966-2-1)
    L*     = 116 f(Y) - 16, f(t) = t^(1/3) above (6/29)^3, else t / (3 (6/29)^2) + 4/29  (CIE 15)

Kornia's rgb_to_lab has the same formula with the weights of a six-digit matrix, and computes a* and b* as
well.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.layout import finish, result_dtype, to_float32

WEIGHTS = (0.2126, 0.7152, 0.0722)
_DELTA = 6 / 29


def linear_rgb(x: Tensor) -> Tensor:
    """Return values proportional to light from sRGB in [0, 1], in the same shape and dtype."""
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def cie_f(t: Tensor) -> Tensor:
    """Return CIE's f of X, Y or Z relative to white, in the same shape and dtype."""
    return torch.where(t > _DELTA**3, t.clamp(min=_DELTA**3) ** (1 / 3), t / (3 * _DELTA**2) + 4 / 29)


def lightness(x: Tensor) -> Tensor:
    """Return L* / 100, float32 [B, 1, H, W], of sRGB images, float32 [B, 3, H, W] in [0, 1]."""
    red, green, blue = linear_rgb(x).unbind(1)
    return of_luminance((red * WEIGHTS[0] + green * WEIGHTS[1] + blue * WEIGHTS[2])[:, None])


def of_luminance(y: Tensor) -> Tensor:
    """Return L* / 100 of Y relative to white, in the same shape and dtype."""
    return (1.16 * cie_f(y) - 0.16).clamp(0, 1)  # rounding moves white off 1 and black off 0


@dataclass(frozen=True)
class Lightness:
    """A reduction to CIE lightness, for a network that must not see colour, such as colorization's.

    The value is L* / 100, in [0, 1], in one channel.
    """

    channels: ClassVar[str] = "L"

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[0], 1, *shape[2:]

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw nothing: the op is deterministic."""
        return {}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the lightness [B, 1, H, W] of images [B, 3, H, W], in [0, 1] and channels-last.

        Floating images keep their dtype, uint8 images become float32.
        """
        return finish(lightness(to_float32(images)), result_dtype(images))
