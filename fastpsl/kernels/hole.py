"""A hole in each image's middle, which Context-Encoder learns to fill (Pathak et al., arXiv 1604.07379)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, uint8

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.layout import finish


@dataclass(frozen=True)
class Hole:
    """A filled square in the middle of each image, which Context-Encoder learns to fill (arXiv 1604.07379).

    Context-Encoder hides 64 of 128 px. It leaves a ring of 4 px inside the hole visible, which is not done
    here.

    Attributes:
        share: The hole's side as a share of the image's, along x and y, in (0, 1).
        fill: The value of each channel in [0, 1]. The default is ImageNet's mean colour.

    Raises:
        ValueError: The share is out of its range.
    """

    share: float = 0.5
    fill: tuple[float, ...] = (0.485, 0.456, 0.406)

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"a hole of {self.share} of the side given; allowed is 0 < share < 1")

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw nothing: the op is deterministic."""
        return {}

    def hidden(self, side_px: int) -> slice:
        """Return the hole's rows or columns on a side of `side_px`; raise ValueError if it is none or all."""
        length = round(self.share * side_px)
        if not 0 < length < side_px:
            raise ValueError(
                f"a hole of {self.share} of {side_px} px is {length} px; allowed are 1 to {side_px - 1} px: "
                f"change the share"
            )
        first = (side_px - length) // 2
        return slice(first, first + length)

    def box(self, num_channels: int, height: int, width: int) -> tuple[slice, slice]:
        """Return the hole's rows and columns in images of this shape; raise ValueError if it does not fit."""
        if len(self.fill) != num_channels:
            raise ValueError(
                f"a hole's colour {self.fill} given for {num_channels} channels; "
                f"allowed is one value per channel: give fill as many"
            )
        return self.hidden(height), self.hidden(width)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        self.box(*shape[1:])
        return shape

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the images [B, C, H, W] with their holes, in the same dtype, channels-last.

        Floating images are in [0, 1]. For uint8 the fill is rounded.
        """
        rows, columns = self.box(*images.shape[1:])
        out = finish(images, images.dtype).clone()
        for channel, value in enumerate(self.fill):
            out[:, channel, rows, columns] = round(255 * value) if images.dtype == uint8 else value
        return out
