"""Horizontal flip with a given probability."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys, Slot, uniforms
from fastpsl.kernels.layout import check_probability, finish, per_sample


@dataclass(frozen=True)
class Flip:
    """A horizontal flip of each sample with probability `p`, for any dtype.

    Attributes:
        p: The probability, in [0, 1].

    Raises:
        ValueError: The probability is out of its range.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p)

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw "flip", bool [B]: whether to flip each sample."""
        return {"flip": uniforms(keys, Slot.FLIP, 1)[:, 0] < self.p}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the flipped images [B, C, H, W], channels-last, in the dtype of `images`."""
        return finish(torch.where(per_sample(draw["flip"]), images.flip(-1), images), images.dtype)
