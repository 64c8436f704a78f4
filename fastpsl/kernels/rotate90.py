"""Exact quarter turns: torch.rot90, counter-clockwise, with a turn per sample or all turns of each."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys, Slot, integers
from fastpsl.kernels.layout import finish, per_sample


@dataclass(frozen=True)
class Rotate90:
    """A random turn by 0, 90, 180 or 270 degrees, or by 0 or 180, all equally likely. Turns are exact.

    Attributes:
        num: The number of turns, 4 or 2.

    Raises:
        ValueError: `num` is neither.
    """

    num: int = 4

    def __post_init__(self) -> None:
        _check_num(self.num)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        check_square(shape[2], shape[3], self.num)
        return shape

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw "turns", int64 [B] in quarter turns counter-clockwise: 0 to 3, or 0 and 2 if `num` is 2."""
        return {"turns": integers(keys, Slot.ROTATION, 1, self.num)[:, 0] * (4 // self.num)}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the turned images [B, C, H, W], channels-last, in the same dtype."""
        check_square(images.shape[-2], images.shape[-1], self.num)
        turns = draw["turns"]
        x = torch.where(per_sample(turns >= 2), images.flip(-1, -2), images)
        if self.num == 4:
            x = torch.where(per_sample(turns % 2 == 1), x.transpose(-1, -2).flip(-2), x)
        return finish(x, images.dtype)


@dataclass(frozen=True)
class AllTurns:
    """A stack of all turns that `Rotate90(num)` may draw, for each image.

    Attributes:
        num: The number of turns, 4 or 2.

    Raises:
        ValueError: `num` is neither.
    """

    num: int = 4

    def __post_init__(self) -> None:
        _check_num(self.num)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        check_square(shape[2], shape[3], self.num)
        return self.num * shape[0], *shape[1:]

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Return the fixed "turns", int64 [B, num] in quarter turns: 0, 1, 2, 3 or 0, 2 in each row."""
        turns = np.arange(0, 4, 4 // self.num)
        return {"turns": np.tile(turns, (len(keys.indices), 1))}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return all turns of a batch, image by image.

        Args:
            images: [B, C, H, W], of any dtype.
            draw: The result of `draw`.

        Returns:
            [num * B, C, H, W] in the same dtype, in channels-last memory.

        Raises:
            ValueError: `num` is 4 and the images are not square.
        """
        check_square(images.shape[-2], images.shape[-1], self.num)
        rotations = [torch.rot90(images, turns, (-2, -1)) for turns in range(0, 4, 4 // self.num)]
        return finish(torch.stack(rotations, 1).flatten(0, 1), images.dtype)


def _check_num(num: int) -> None:
    if num not in (2, 4):
        raise ValueError(f"{num} rotations given; allowed are 2 (half turns) and 4 (quarter turns)")


def check_square(height: int, width: int, num: int) -> None:
    """Raise ValueError if `num` is 4 and the images are not square."""
    if num == 4 and height != width:
        raise ValueError(
            f"images of {height} x {width} px given to quarter turns; "
            f"allowed are squares: crop first, or use num=2"
        )
