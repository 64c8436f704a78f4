"""Gaussian blur with a sigma per sample: torchvision's gaussian_blur, reflected at the border.

The filter is Kornia's separable one, with taps computed on the device. Kornia's gaussian_blur2d gives the
same values, but copies one of them to the host, which makes the host wait for a GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys, Slot, uniforms
from fastpsl.kernels.layout import check_probability, finish, per_sample, result_dtype, to_float32


@dataclass(frozen=True)
class GaussianBlur:
    """A Gaussian blur of each sample with probability `p`.

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

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError unless both sides exceed kernel_px // 2 pixels, which the reflection needs."""
        half = self.kernel_px // 2
        if min(height, width) <= half:
            raise ValueError(
                f"images of {height} x {width} px given to a blur of {self.kernel_px} px; allowed are "
                f"sides of {half + 1} px and more: use a smaller kernel"
            )

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the blurred images [B, C, H, W], channels-last.

        Floating images keep their dtype, uint8 images become float32. Raises ValueError as `check_size` does.
        """
        num_images, _, height, width = images.shape
        self.check_size(height, width)
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
