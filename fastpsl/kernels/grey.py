"""Grey with probability p: torchvision's rgb_to_grayscale, three equal channels out."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys, Slot, uniforms
from fastpsl.kernels.layout import check_probability, finish, per_sample, result_dtype, to_float32

# ITU-R 601 luma as torchvision has it; the weights add up to 0.9999.
WEIGHTS = (0.2989, 0.587, 0.114)


def luma(x: Tensor) -> Tensor:
    """[B, 3, H, W] floating → [B, 1, H, W], the weighted sum of the channels."""
    red, green, blue = x.unbind(1)
    return (red * WEIGHTS[0] + green * WEIGHTS[1] + blue * WEIGHTS[2])[:, None]


@dataclass(frozen=True)
class Grey:
    """Takes the colour from each sample with probability `p`."""

    p: float = 0.2

    def __post_init__(self) -> None:
        check_probability(self.p)

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """{"apply": bool [B]}"""
        return {"apply": uniforms(keys, Slot.GREY, 1)[:, 0] < self.p}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """[B, 3, H, W] uint8 or floating → float32 for uint8, else as it came; [0, 1], channels-last."""
        x = to_float32(images)
        return finish(torch.where(per_sample(draw["apply"]), luma(x), x), result_dtype(images))
