"""Ops that mix neighbouring pixels: Gaussian blur and Sobel.

    gx = [1 2 1]ᵀ [-1 0 1] / 8      gy = [-1 0 1]ᵀ [1 2 1] / 8      with the border repeated

The absolute values of a kernel add up to 1, so images in [0, 1] give gradients in [-0.5, 0.5] and magnitudes
in [0, 0.71]. They equal Kornia's `spatial_gradient(normalized=True)` within 6e-8. Kornia's function is not
used because it copies its kernel from host memory in every call. On a GPU the host waits for that copy.
Kornia's `sobel` adds 1e-6 under the root for the sake of gradients, which an augmentation does not need.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastpsl.kernels.draws import Keys, Slot, uniforms
from fastpsl.kernels.normalise import check_probability, finish, per_sample, result_dtype, to_float32


@dataclass(frozen=True)
class GaussianBlur:
    """A Gaussian blur of each sample with probability `p`: torchvision's, reflected at the border.

    The filter is Kornia's separable one, with taps computed on the device. Kornia's gaussian_blur2d gives the
    same values, but copies one of them to the host, which makes the host wait for a GPU.

    Attributes:
        kernel_px: The number of taps per axis, odd.
        sigma: The range of the blur's sigma in pixels, drawn uniformly, 0 < low <= high.
        p: The probability that a sample is blurred, in [0, 1].

    Raises:
        ValueError: A value is out of its range.
    """

    kernel_px: int
    sigma: tuple[float, float] = (0.1, 2.0)
    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p)
        if self.kernel_px < 1 or self.kernel_px % 2 == 0:
            raise ValueError(f"a blur kernel of {self.kernel_px} px given; allowed are odd numbers from 1")
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"blur sigma {self.sigma} given; allowed is 0 < low <= high, in px")

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw "apply", bool [B], and "sigma", float32 [B] in pixels."""
        numbers = uniforms(keys, Slot.BLUR, 2)
        low, high = np.float32(self.sigma[0]), np.float32(self.sigma[1])
        return {"apply": numbers[:, 0] < self.p, "sigma": low + (high - low) * numbers[:, 1]}

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Raise ValueError unless both sides exceed kernel_px // 2 pixels, which the reflection needs."""
        height, width = shape[2:]
        half = self.kernel_px // 2
        if min(height, width) <= half:
            raise ValueError(
                f"images of {height} x {width} px given to a blur of {self.kernel_px} px; allowed are "
                f"sides of {half + 1} px and more: use a smaller kernel"
            )
        return shape

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the blurred images [B, C, H, W], channels-last.

        Floating images keep their dtype, uint8 images become float32. Raises ValueError as `out_shape` does.
        """
        num_images = self.out_shape(tuple(images.shape))[0]
        half = self.kernel_px // 2
        x = finish(to_float32(images), torch.float32)
        if num_images == 0:
            return finish(x, result_dtype(images))
        taps = torch.arange(-half, half + 1, device=x.device, dtype=torch.float32)
        weights = torch.softmax(-0.5 * (taps / draw["sigma"][:, None]) ** 2, dim=1)  # [B, kernel_px]
        from kornia.filters import filter2d_separable  # takes 0.4 s, and the fused operations do without

        with torch.autocast(x.device.type, enabled=False):  # because it would round the convolutions to half
            y = filter2d_separable(x.contiguous(), weights, weights, border_type="reflect")
        return finish(torch.where(per_sample(draw["apply"]), y, x), result_dtype(images))


@dataclass(frozen=True)
class Sobel:
    """A replacement of each sample by its channels' gradient magnitudes, in [0, 0.71], with probability `p`.

    Attributes:
        p: The probability, in [0, 1].

    Raises:
        ValueError: The probability is out of its range.
    """

    p: float = 0.2

    def __post_init__(self) -> None:
        check_probability(self.p)

    @property
    def channels(self) -> str | None:
        """The name of the channels, if every sample has them."""
        return "Sobel" if self.p >= 1 else None

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw "apply", bool [B]: whether to filter each sample."""
        return {"apply": uniforms(keys, Slot.SOBEL, 1)[:, 0] < self.p}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the images [B, C, H, W] in [0, 1], channels-last.

        Floating images keep their dtype, uint8 images become float32.
        """
        x = finish(to_float32(images), torch.float32)
        return finish(torch.where(per_sample(draw["apply"]), gradient_size(x), x), result_dtype(images))


def gradient_size(x: Tensor) -> Tensor:
    """Return sqrt(gx² + gy²), float32 [B, C, H, W], of `x`, float32 [B, C, H, W]."""
    gx, gy = spatial_gradients(x)
    return torch.sqrt(gx * gx + gy * gy)


def spatial_gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each channel's gx and gy, float32 [B, C, H, W] as `x`, by sums of shifted images."""
    if not x.numel():
        return x, x
    padded = functional.pad(x, (1, 1, 1, 1), mode="replicate")
    left, middle, right = padded[..., :-2], padded[..., 1:-1], padded[..., 2:]
    across, smooth = right - left, left + 2 * middle + right
    gx = (across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]) / 8
    gy = (smooth[..., 2:, :] - smooth[..., :-2, :]) / 8
    return gx, gy


# The std of both channels, which have mean 0: ImageNet's usual std, averaged over colours, divided by the
# kernels' divisor.
SOBEL_XY_STD = 0.226 / 8


@dataclass(frozen=True)
class SobelXY:
    """A replacement of each sample by its grey value's gradients along x and y, the last operation of a view.

    It is the network's input in DeepCluster and UIC: two channels with values in [-0.5, 0.5]. The border is
    repeated, so that black images and white ones have no gradients and no frame. DeepCluster computes -8 gx
    and -8 gy of normalised pixels, padded with zeros, which draws a frame. SOBEL_XY_STD brings the values
    here to its scale. Its published weights take them if the sign of the first convolution is changed.
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
