"""A hole in the middle of each picture: what Context-Encoder hides and has restored (Pathak et al., arXiv 1604.07379)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, uint8

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.layout import finish


@dataclass(frozen=True)
class Hole:
    """The middle `share` of the side, along x and y, is `fill`: a value a channel, in [0, 1]; by default ImageNet's mean colour.

    Context-Encoder hides 64 of 128 px, with the mean colour. It leaves a ring of 4 px inside to be seen, which is not done here.
    """

    share: float = 0.5
    fill: tuple[float, ...] = (0.485, 0.456, 0.406)

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"a hole of {self.share} of the side given; allowed is 0 < share < 1")

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Nothing is drawn."""
        return {}

    def hidden(self, side_px: int) -> slice:
        """Which of `side_px` rows or columns the hole takes. ValueError where these are none or all."""
        length = round(self.share * side_px)
        if not 0 < length < side_px:
            raise ValueError(
                f"a hole of {self.share} of {side_px} px is {length} px; allowed are 1 to {side_px - 1} px: change the share"
            )
        first = (side_px - length) // 2
        return slice(first, first + length)

    def box(self, num_channels: int, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of the hole in such pictures; ValueError where it cannot be."""
        if len(self.fill) != num_channels:
            raise ValueError(
                f"a hole's colour {self.fill} given for {num_channels} channels; allowed is one value a channel"
            )
        return self.hidden(height), self.hidden(width)

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """[B, C, H, W] uint8 or floating in [0, 1] → the same shape and dtype, channels-last; a uint8 fill is rounded."""
        rows, columns = self.box(*images.shape[1:])
        out = finish(images, images.dtype).clone()
        for channel, value in enumerate(self.fill):
            out[:, channel, rows, columns] = round(255 * value) if images.dtype == uint8 else value
        return out
