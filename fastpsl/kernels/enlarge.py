"""Bilinear enlargement, so that a network for 224 px can take images of 84 px (UIC, Table 6).

This runs on the device because the decoder resizes by exact means over areas, which turns enlarged pixels
into blocks.
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
    """A bilinear resize of any shape to a square of `side_px`, then a centre crop of `size_px` x `size_px`.

    A network for 224 px can so read images of 84 px (UIC, Table 6).

    Attributes:
        side_px: The side of the square, in pixels.
        size_px: The side of the centre crop, 1 to `side_px`.

    Raises:
        ValueError: `size_px` is out of its range.
    """

    side_px: int
    size_px: int

    def __post_init__(self) -> None:
        if not 1 <= self.size_px <= self.side_px:
            raise ValueError(
                f"a middle of {self.size_px} px of {self.side_px} px given; "
                f"allowed are 1 px to the whole side"
            )

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return *shape[:2], self.size_px, self.size_px

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw nothing: the op is deterministic."""
        return {}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the enlarged images [B, C, size_px, size_px], channels-last, in the dtype of `images`.

        uint8 values are rounded to the nearest.
        """
        large = functional.interpolate(images.float(), (self.side_px, self.side_px), mode="bilinear")
        return self.middle(large, images.dtype)

    def middle(self, large: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the middle of the enlarged images, float32 [B, C, side_px, side_px], as `dtype`."""
        start = (self.side_px - self.size_px) // 2
        middle = large[..., start : start + self.size_px, start : start + self.size_px]
        if dtype == torch.uint8:
            middle = middle.round()
        return finish(middle, dtype)
