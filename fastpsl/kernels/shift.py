"""Random shifts by whole pixels, padded with black: torchvision's RandomCrop(side, padding=max_px)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastpsl.kernels.draws import Keys, Slot, integers
from fastpsl.kernels.layout import finish


@dataclass(frozen=True)
class Shift:
    """A shift by up to `max_px` pixels up, down, left and right, each distance equally likely, for any dtype.

    RotNet and AET crop small images in this way: they pad each side with 4 black px and take 32 x 32 of the
    40 x 40.

    Attributes:
        max_px: The largest distance in pixels, 0 or more.

    Raises:
        ValueError: The distance is below 0.
    """

    max_px: int = 4

    def __post_init__(self) -> None:
        if self.max_px < 0:
            raise ValueError(f"a shift of {self.max_px} px given; allowed are 0 px and more")

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw "shift", int64 [B, 2] from 0 to 2 * max_px: the window's top and left in the padded image."""
        return {"shift": integers(keys, Slot.SHIFT, 2, 2 * self.max_px + 1)}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the shifted images [B, C, H, W], channels-last, in the same dtype."""
        height, width = images.shape[-2:]
        padded = functional.pad(images, (self.max_px,) * 4).permute(0, 2, 3, 1)
        tops, lefts = draw["shift"][:, 0, None], draw["shift"][:, 1, None]
        rows = tops + torch.arange(height, device=images.device)
        columns = lefts + torch.arange(width, device=images.device)
        samples = torch.arange(len(images), device=images.device)[:, None, None]
        moved = padded[samples, rows[:, :, None], columns[:, None, :]]
        return finish(moved.permute(0, 3, 1, 2), images.dtype)
