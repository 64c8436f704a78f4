"""Eight rotations in steps of 45 degrees: the decoder samples one of two bases, exact quarter turns do the rest.

Label l shows the picture turned by 45 * l degrees counter-clockwise: base l % 2 (upright, or turned by 45 degrees; see
kernels/isotropic.py) is what `RotationCrop` asks of the decoder, l // 2 quarter turns are made here. Both come from
one draw. Angles of 90 degrees alone need none of this: ordinary crops and kernels/rotate90.py are exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys, Slot, integers
from fastpsl.kernels.rotate90 import Rotate90

NUM_ROTATIONS = 8
_quarter_turns = Rotate90(4)


def rotation_labels(keys: Keys) -> np.ndarray:
    """int64 [B] in 0..7, all equally likely: the one draw of a view's rotation."""
    return integers(keys, Slot.ROTATION, 1, NUM_ROTATIONS)[:, 0]


@dataclass(frozen=True)
class Rotate45:
    """The quarter turns of a view whose crop is a `RotationCrop` of base "drawn".

    No mirror (`Flip`) in such a view: a picture turned by 45 degrees and mirrored is turned by -45, which is another label.
    """

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """{"label": int64 [B] in 0..7, steps of 45 degrees; "turns": int64 [B] in 0..3, label // 2}"""
        labels = rotation_labels(keys)
        return {"label": labels, "turns": labels // 2}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """[B, C, S, S] → the same shape and dtype, channels-last. ValueError where images are not square."""
        return _quarter_turns(images, draw)


def all_rotations(upright: Tensor, diagonal: Tensor) -> tuple[Tensor, Tensor]:
    """Every rotation of every picture, of one decode: ([8 * B, C, S, S], int64 labels [8 * B]), image-major.

    The inputs [B, C, S, S] are two views without Rotate45, by RotationCrop(base=0) and RotationCrop(base=45): the same
    windows. Any dtype, kept; channels-last.
    """
    if upright.shape != diagonal.shape or upright.shape[-1] != upright.shape[-2]:
        raise ValueError(
            f"views of {tuple(upright.shape)} and {tuple(diagonal.shape)} given; allowed are two of one shape "
            f"[B, C, S, S]: use crops that differ in nothing but their base"
        )
    turned = [torch.rot90(base, turns, (-2, -1)) for turns in range(4) for base in (upright, diagonal)]
    images = torch.stack(turned, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return images, torch.arange(NUM_ROTATIONS, device=images.device).repeat(len(upright))
