"""Eight rotations in steps of 45 degrees: one of two bases from the decoder, then exact quarter turns.

Label l shows the image turned by 45 * l degrees counter-clockwise. `RotationCrop` has the decoder sample the
base l % 2, upright or turned by 45 degrees (kernels/isotropic.py). The l // 2 quarter turns are made here.
Both follow from one draw. To get all eight rotations at once, use two views, one per base, with
`AllTurns(4)`. Multiples of 90 degrees need none of this: ordinary crops and kernels/rotate90.py are exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fastpsl.kernels.draws import Keys, Slot, integers
from fastpsl.kernels.flip import Flip
from fastpsl.kernels.rotate90 import Rotate90

NUM_ROTATIONS = 8
_quarter_turns = Rotate90(4)


def rotation_labels(keys: Keys) -> np.ndarray:
    """Draw a rotation label per sample, int64 [B] in 0..7, all equally likely."""
    return integers(keys, Slot.ROTATION, 1, NUM_ROTATIONS)[:, 0]


@dataclass(frozen=True)
class Rotate45:
    """The turns of a view whose crop is a `RotationCrop` of base "drawn": eight rotations in steps of 45
    degrees.

    Label l shows the image turned by 45 * l degrees counter-clockwise. Such a view must not have a `Flip`. An
    image that is turned by 45 degrees and mirrored is turned by -45, which is another label.
    """

    def check_view(self, crop: object, ops: Sequence[object]) -> None:
        """Check that the label holds for a view with this crop and these operations."""
        if getattr(crop, "base", None) != "drawn":
            raise ValueError(
                "ViewSpec.ops holds Rotate45, whose label the crop shares; "
                "give RotationCrop, base drawn, as the crop"
            )
        if any(isinstance(op, Flip) for op in ops):
            raise ValueError(
                "ViewSpec.ops holds Rotate45 and Flip: turned by 45 degrees and mirrored is turned by -45; "
                "leave out Flip"
            )

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw "label", int64 [B] in 0..7 (steps of 45 degrees), and "turns", int64 [B] = label // 2."""
        labels = rotation_labels(keys)
        return {"label": labels, "turns": labels // 2}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the turned images [B, C, S, S], channels-last, in the same dtype."""
        return _quarter_turns(images, draw)
