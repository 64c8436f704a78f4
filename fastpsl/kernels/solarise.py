"""Solarisation with a given probability: torchvision's solarize, which inverts bright values."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys, Slot, uniforms
from fastpsl.kernels.layout import check_probability, finish, per_sample, result_dtype, to_float32


@dataclass(frozen=True)
class Solarise:
    """An inversion of each sample's values from `threshold` on, with probability `p` (BYOL, appendix B).

    No fused kernel has it, so the operations of a view with it run one by one.

    Attributes:
        p: The probability, in [0, 1].
        threshold: The lowest value that is inverted, in [0, 1]. BYOL's is 0.5.

    Raises:
        ValueError: A value is out of its range.
    """

    p: float = 0.2
    threshold: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p)
        if not 0 <= self.threshold <= 1:
            raise ValueError(
                f"threshold {self.threshold} given; allowed are 0 to 1: values of images are in [0, 1]"
            )

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw "apply", bool [B]: whether to solarise each sample."""
        return {"apply": uniforms(keys, Slot.SOLARISE, 1)[:, 0] < self.p}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the images [B, C, H, W] in [0, 1], channels-last.

        Floating images keep their dtype, uint8 images become float32.
        """
        x = to_float32(images)
        inverted = per_sample(draw["apply"]) & (x >= self.threshold)
        return finish(torch.where(inverted, 1 - x, x), result_dtype(images))
