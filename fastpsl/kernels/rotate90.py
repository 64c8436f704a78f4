"""Exact quarter turns, pixel for pixel: torch.rot90, counter-clockwise; each sample its own, or all of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys, Slot, integers
from fastpsl.kernels.layout import finish, per_sample


@dataclass(frozen=True)
class Rotate90:
    """`num` = 4: 0, 90, 180 or 270 degrees; `num` = 2: 0 or 180 degrees. All are equally likely."""

    num: int = 4

    def __post_init__(self) -> None:
        _check_num(self.num)

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """{"turns": int64 [B], quarter turns counter-clockwise: 0..3, or 0 and 2 for num = 2}"""
        return {"turns": integers(keys, Slot.ROTATION, 1, self.num)[:, 0] * (4 // self.num)}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """[B, C, H, W] → the same shape and dtype, channels-last. Quarter turns need H = W: ValueError."""
        check_square(images.shape[-2], images.shape[-1], self.num)
        turns = draw["turns"]
        x = torch.where(per_sample(turns >= 2), images.flip(-1, -2), images)
        if self.num == 4:
            x = torch.where(per_sample(turns % 2 == 1), x.transpose(-1, -2).flip(-2), x)
        return finish(x, images.dtype)


@dataclass(frozen=True)
class AllTurns:
    """Every turn that `Rotate90(num)` may draw, of each image: nothing is drawn."""

    num: int = 4

    def __post_init__(self) -> None:
        _check_num(self.num)

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """{"turns": int64 [B, num], quarter turns counter-clockwise: 0, 1, 2, 3, or 0, 2, in each row}"""
        turns = np.arange(0, 4, 4 // self.num)
        return {"turns": np.tile(turns, (len(keys.indices), 1))}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """[B, C, H, W] → [num * B, C, H, W], image-major, same dtype, channels-last. Quarter turns need H = W."""
        check_square(images.shape[-2], images.shape[-1], self.num)
        turned = [torch.rot90(images, turns, (-2, -1)) for turns in range(0, 4, 4 // self.num)]
        return finish(torch.stack(turned, 1).flatten(0, 1), images.dtype)


def _check_num(num: int) -> None:
    if num not in (2, 4):
        raise ValueError(f"{num} rotations given; allowed are 2 (half turns) and 4 (quarter turns)")


def check_square(height: int, width: int, num: int) -> None:
    """ValueError for images that are not square where `num` is 4."""
    if num == 4 and height != width:
        raise ValueError(
            f"images of {height} x {width} px given to quarter turns; "
            f"allowed are squares: crop first, or use num=2"
        )
