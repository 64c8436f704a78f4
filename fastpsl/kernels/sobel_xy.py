"""The grey image's gradients along x and y as two channels, the network's input in DeepCluster and UIC.

    grey = (R + G + B) / 3      gx = [1 2 1]ᵀ [-1 0 1] / 8      gy = [-1 0 1]ᵀ [1 2 1] / 8

The border is repeated, so that black images and white ones have no gradients and no frame. DeepCluster
computes -8 gx and -8 gy of normalised pixels, padded with zeros, which draws a frame. SOBEL_XY_STD brings the
values here to its scale. Its published weights take them if the sign of the first convolution is changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.layout import finish, result_dtype, to_float32
from fastpsl.kernels.sobel import spatial_gradients

# The std of both channels, which have mean 0: ImageNet's usual std, averaged over colours, divided by the
# kernels' divisor.
SOBEL_XY_STD = 0.226 / 8


@dataclass(frozen=True)
class SobelXY:
    """A replacement of each sample by its grey value's gradients along x and y, the last operation of a view.

    It is the network's input in DeepCluster and UIC. The gradients are Sobel's, divided by 8, with the border
    repeated. Values are in [-0.5, 0.5], in two channels.
    """

    channels: ClassVar[str] = "SobelXY"

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[0], 2, *shape[2:]

    def check_view(self, crop: object, ops: Sequence[object]) -> None:
        """Check that three colours come here, and that no operation follows."""
        if ops[-1] is not self or any(hasattr(op, "channels") for op in ops[:-1]):
            raise ValueError(
                f"ViewSpec.ops holds {', '.join(type(op).__name__ for op in ops)}: "
                f"SobelXY makes two channels of three colours; put it last, without Sobel and Lightness"
            )

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw nothing: the op is deterministic."""
        return {}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return gx and gy in [-0.5, 0.5], [B, 2, H, W], channels-last, of images [B, 3, H, W].

        Floating images are in [0, 1] and keep their dtype; uint8 images become float32.
        """
        return finish(gradients(to_float32(images).mean(1, keepdim=True)), result_dtype(images))


def gradients(grey: Tensor) -> Tensor:
    """Return gx and gy of the definition above, float32 [B, 2, H, W], of float32 [B, 1, H, W]."""
    return torch.cat(spatial_gradients(grey), 1)
