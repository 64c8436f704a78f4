"""Grey images with a given probability: torchvision's rgb_to_grayscale, with three equal channels."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys, Slot, uniforms
from fastpsl.kernels.layout import check_probability, finish, per_sample, result_dtype, to_float32

# ITU-R 601 luma with torchvision's weights, which add up to 0.9999.
WEIGHTS = (0.2989, 0.587, 0.114)


def luma(x: Tensor) -> Tensor:
    """Return the weighted sum, [B, 1, H, W], of the channels of `x`, floating [B, 3, H, W]."""
    red, green, blue = x.unbind(1)
    return (red * WEIGHTS[0] + green * WEIGHTS[1] + blue * WEIGHTS[2])[:, None]


@dataclass(frozen=True)
class Grey:
    """A removal of each sample's colour with probability `p`. Three equal channels remain.

    Attributes:
        p: The probability, in [0, 1].

    Raises:
        ValueError: The probability is out of its range.
    """

    p: float = 0.2

    def __post_init__(self) -> None:
        check_probability(self.p)

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw "apply", bool [B]: whether to make each sample grey."""
        return {"apply": uniforms(keys, Slot.GREY, 1)[:, 0] < self.p}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the images [B, 3, H, W] in [0, 1], channels-last.

        Floating images keep their dtype, uint8 images become float32.
        """
        x = to_float32(images)
        return finish(torch.where(per_sample(draw["apply"]), luma(x), x), result_dtype(images))
