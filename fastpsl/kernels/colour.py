"""Colour distortion: brightness, contrast, saturation and hue, in an order of its own for each sample.

The definition is torchvision.transforms.v2.functional's adjust_brightness, adjust_contrast, adjust_saturation
and adjust_hue on float images, one after the other, clamped to [0, 1] after each of the first three.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys, Slot, scaled, uniforms, words
from fastpsl.kernels.grey import luma
from fastpsl.kernels.layout import check_probability, finish, per_sample, result_dtype, to_float32

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = np.array(list(permutations(range(4))), np.int64)


@dataclass(frozen=True)
class ColourDistortion:
    """With probability `p`: factors from [max(0, 1 - x), 1 + x] for x = brightness, contrast, saturation, and
    a hue shift from [-hue, hue] turns, hue <= 0.5. All 24 orders are equally likely.
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
        """{"apply": bool [B], "order": int64 [B, 4] of op numbers, "factors": float32 [B, 4] by op number}"""
        # Word 0 decides, word 1 orders, words 2 to 5 are the factors.
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
        """[B, 3, H, W] uint8 or floating → float32 for uint8, else as it came; [0, 1], channels-last."""
        x = finish(to_float32(images), torch.float32)
        apply, order, factors = draw["apply"], draw["order"], draw["factors"]
        hue_at = (order.eq(HUE) * torch.arange(4, device=x.device)).sum(1)
        # Hue is dear and comes once a sample: the blends before it, hue, the blends after it. A blend that is
        # not due has the factor 1, which changes nothing (x * 1 + y * 0, exactly).
        for position in (0, 1, 2):
            x = _blend(x, order[:, position], factors, apply & (hue_at > position))
        if self.hue > 0:
            x = torch.where(per_sample(apply), shift_hue(x, factors[:, HUE]), x)
        for position in (1, 2, 3):
            x = _blend(x, order[:, position], factors, apply & (hue_at < position))
        return finish(x, result_dtype(images))


def _blend(x: Tensor, op: Tensor, factors: Tensor, due: Tensor) -> Tensor:
    # Brightness, contrast and saturation are one form, x * f + y * (1 - f): y is black, the
    # mean grey, the pixel's grey.
    factor = per_sample(torch.where(due, factors.gather(1, op[:, None])[:, 0], 1.0))
    grey = luma(x)
    other = torch.where(per_sample(op == CONTRAST), grey.mean((1, 2, 3), keepdim=True), grey)
    other = torch.where(per_sample(op == BRIGHTNESS), 0.0, other)
    return (x * factor + other * (1 - factor)).clamp(0, 1)


def shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """[B, 3, H, W] float in [0, 1], hue moved by turns [B], 1 a full circle; value and saturation stay."""
    red, green, blue = x.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    divisor = torch.where(chroma == 0, 1.0, chroma)  # a grey pixel has no hue: any will do
    of_green_blue = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    sixths = torch.where(value == red, (green - blue) / divisor, of_green_blue) + 6 * turns[:, None, None]
    # HSV → RGB without cases: V - C * clamp(min(k, 4 - k), 0, 1), k = (n + hue) mod 6, n = 5, 3, 1.
    channels = []
    for offset in (5, 3, 1):
        k = (sixths + offset).remainder(6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=-1).permute(0, 3, 1, 2)
