"""Ops that change colours pixel by pixel: grey, solarisation and colour distortion."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys, Slot, scaled, uniforms, words
from fastpsl.kernels.normalise import check_probability, finish, per_sample, result_dtype, to_float32

# ITU-R 601 luma with torchvision's weights, which add up to 0.9999.
WEIGHTS = (0.2989, 0.587, 0.114)


def luma(x: Tensor) -> Tensor:
    """Return the weighted sum, [B, 1, H, W], of the channels of `x`, floating [B, 3, H, W]."""
    red, green, blue = x.unbind(1)
    return (red * WEIGHTS[0] + green * WEIGHTS[1] + blue * WEIGHTS[2])[:, None]


@dataclass(frozen=True)
class Grey:
    """A removal of each sample's colour with probability `p`. Three equal channels remain.

    Attributes:
        p: The probability, in [0, 1].

    Raises:
        ValueError: The probability is out of its range.
    """

    p: float = 0.2

    def __post_init__(self) -> None:
        check_probability(self.p)

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw "apply", bool [B]: whether to make each sample grey."""
        return {"apply": uniforms(keys, Slot.GREY, 1)[:, 0] < self.p}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the images [B, 3, H, W] in [0, 1], channels-last.

        Floating images keep their dtype, uint8 images become float32.
        """
        x = to_float32(images)
        return finish(torch.where(per_sample(draw["apply"]), luma(x), x), result_dtype(images))


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


BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = np.array(list(permutations(range(4))), np.int64)


@dataclass(frozen=True)
class ColourDistortion:
    """A random change of brightness, contrast, saturation and hue, in one of 24 equally likely orders.

    The definition is adjust_brightness, adjust_contrast, adjust_saturation and adjust_hue of
    torchvision.transforms.v2.functional on float images, applied one after the other. Each of the first
    three is followed by a clamp to [0, 1].

    Attributes:
        brightness: The factor is drawn from [max(0, 1 - brightness), 1 + brightness].
        contrast: The factor is drawn in the same way from contrast.
        saturation: The factor is drawn in the same way from saturation.
        hue: The hue is moved by -hue to hue turns, at most 0.5.
        p: The probability that a sample is distorted, in [0, 1].

    Raises:
        ValueError: A value is out of its range.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    p: float = 0.8

    def __post_init__(self) -> None:
        check_probability(self.p)
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} {getattr(self, name)} given; allowed are 0 and more: 0 leaves it alone"
                )
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue {self.hue} turns given; allowed are 0 to 0.5: 0 leaves it alone")

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw which samples to distort, in what order and how far.

        Returns:
            A dict of "apply", bool [B]; "order", int64 [B, 4], operation numbers; and "factors", float32 [B,
            4], by operation number. Operations 0 to 3 are brightness, contrast, saturation and hue.
        """
        # Word 0 decides whether to distort, word 1 gives the order, words 2 to 5 the factors.
        numbers = uniforms(keys, Slot.COLOUR, 6)
        order = ORDERS[scaled(words(keys, Slot.COLOUR, 2)[:, 1], len(ORDERS))]
        low, high = self._ranges()
        return {
            "apply": numbers[:, 0] < self.p,
            "order": order,
            "factors": low + (high - low) * numbers[:, 2:],
        }

    def _ranges(self) -> tuple[np.ndarray, np.ndarray]:
        widths = np.array([self.brightness, self.contrast, self.saturation], np.float32)
        low = np.append(np.maximum(0, 1 - widths), np.float32(-self.hue))
        high = np.append(1 + widths, np.float32(self.hue))
        return low.astype(np.float32), high.astype(np.float32)

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the distorted images [B, 3, H, W] in [0, 1], channels-last.

        Floating images keep their dtype, uint8 images become float32.
        """
        return self.distorted(images, draw, luma, mixed, shift_hue)

    def distorted(
        self,
        images: Tensor,
        draw: Mapping[str, Tensor],
        grey: Callable[[Tensor], Tensor],
        mix: Callable[[Tensor, Tensor, Tensor], Tensor],
        hue: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Return what a call returns, by functions instead of `luma`, `mixed` and `shift_hue`."""

        def blend(x: Tensor, op: Tensor, due: Tensor) -> Tensor:
            # All three have the form x * f + y * (1 - f). Here y is black for brightness, the image's mean
            # grey for contrast and the pixel's grey for saturation.
            factor = per_sample(torch.where(due, factors.gather(1, op[:, None])[:, 0], 1.0))
            greys = grey(x)
            other = torch.where(per_sample(op == CONTRAST), greys.mean((1, 2, 3), keepdim=True), greys)
            return mix(x, torch.where(per_sample(op == BRIGHTNESS), 0.0, other), factor)

        x = finish(to_float32(images), torch.float32)
        apply, order, factors = draw["apply"], draw["order"], draw["factors"]
        hue_at = (order.eq(HUE) * torch.arange(4, device=x.device)).sum(1)
        # Hue is expensive and occurs once per sample, so it is computed once for the batch, between the
        # blends before it and those after it. A blend that does not apply has the factor 1, which changes
        # nothing: x * 1 + y * 0 is exact.
        for position in (0, 1, 2):
            x = blend(x, order[:, position], apply & (hue_at > position))
        if self.hue > 0:
            x = torch.where(per_sample(apply), hue(x, factors[:, HUE]), x)
        for position in (1, 2, 3):
            x = blend(x, order[:, position], apply & (hue_at < position))
        return finish(x, result_dtype(images))


def mixed(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Return x * share + other * (1 - share), clamped to [0, 1]; `other` and `share` broadcast to `x`."""
    return (x * share + other * (1 - share)).clamp(0, 1)


def shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Return the images with their hue moved; value and saturation stay.

    `x` is floating [B, 3, H, W] in [0, 1], as the result. `turns` is [B]; 1 is the full circle.
    """
    red, green, blue = x.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    divisor = torch.where(chroma == 0, 1.0, chroma)  # a grey pixel has no hue, so any divisor will do
    of_green_blue = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    sixths = torch.where(value == red, (green - blue) / divisor, of_green_blue) + 6 * turns[:, None, None]
    # HSV to RGB without cases: V - C * clamp(min(k, 4 - k), 0, 1) with k = (n + hue) mod 6, n = 5, 3, 1.
    channels = []
    for offset in (5, 3, 1):
        k = (sixths + offset).remainder(6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=-1).permute(0, 3, 1, 2)
