"""Eight rotations in steps of 45 degrees: the decoder samples one of two bases, exact quarter turns do the rest.

Label l shows the picture turned by 45 * l degrees counter-clockwise: base l % 2 (upright, or turned by 45 degrees; see
kernels/isotropic.py) is what `RotationCrop` asks of the decoder, l // 2 quarter turns are made here. Both come from
one draw. All eight rotations at once are two views, one of each base, with `AllTurns(4)`. Angles of 90 degrees alone need none
of this: ordinary crops and kernels/rotate90.py are exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
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
