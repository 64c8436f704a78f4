"""Enlarge: small pictures bilinearly to a larger side, then their middle: a network for 224 px sees pictures of 84 (uic.txt, Table 6).

On the device and not by the decoder, whose resize is an exact mean of areas: of what is enlarged that makes blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.layout import finish


@dataclass(frozen=True)
class Enlarge:
    """To `side_px` x `side_px`, whatever the shape was, then the middle `size_px` x `size_px`."""

    side_px: int
    size_px: int

    def __post_init__(self) -> None:
        if not 1 <= self.size_px <= self.side_px:
            raise ValueError(
                f"a middle of {self.size_px} px of {self.side_px} px given; allowed are 1 px to the whole side"
            )

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """{}: nothing is random."""
        return {}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """[B, C, H, W] → [B, C, size_px, size_px] of the same dtype, channels-last; uint8 is rounded."""
        large = functional.interpolate(images.float(), (self.side_px, self.side_px), mode="bilinear")
        start = (self.side_px - self.size_px) // 2
        middle = large[..., start : start + self.size_px, start : start + self.size_px]
        if images.dtype == torch.uint8:
            middle = middle.round()
        return finish(middle, images.dtype)
