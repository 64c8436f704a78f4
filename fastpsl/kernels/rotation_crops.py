"""The crop for rotations by 45 degrees: a window that fits upright and turned, so no border tells which."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.kernels.geometry import rotation_labels
from fastpsl.kernels.isotropic import DIAGONAL, ISOTROPIC, largest_side_px, margin_px

# because less of an image shows nothing that has an upright
_LEAST_SIDE_PX = 16


@dataclass(frozen=True)
class RotationCrop:
    """A random or central window of `share` of the largest side that lies in the image at any angle.

    For an image with the shorter side 375, the largest window is 245 px, and the default one 215. The size
    and place of a window have one distribution for all angles: the square turned by 45 degrees and the
    kernel's reach lie inside the image for each.

    PSL (section 4.1, "Image rotation") resizes the shorter side to 256 and rotates. It takes the centre crop
    "remaining the resolution" and a random 224 px of it. It does not say how the corners are filled. Here the
    largest window replaces its centre crop, 224/256 is its share, and places are drawn over the whole image.

    Attributes:
        size_px: The side of the view, in pixels.
        share: The window's share of the largest side, in (0, 1].
        random: Whether the place is random. Otherwise, it is the centre.
        base: "drawn" is upright or turned, by the draw that gives `Rotate45` its label. 0 or 45 is always
            this base, with the window of view 0 in every view. So two views, one per base, show the same
            window.

    Raises:
        ValueError: A value is out of its range.
    """

    size_px: int = 224
    share: float = 224 / 256
    random: bool = True
    base: Literal["drawn", 0, 45] = "drawn"

    def __post_init__(self) -> None:
        if self.size_px < 1:
            raise ValueError(f"crop size {self.size_px} px given; allowed are 1 px and more")
        if not 0 < self.share <= 1:
            raise ValueError(f"share {self.share} of the largest window given; allowed is 0 < share <= 1")
        if self.base not in ("drawn", 0, 45):
            raise ValueError(f"base {self.base!r} given; allowed are 'drawn', 0 and 45")

    def check(self, min_height: int, min_width: int) -> None:
        """Raise ValueError if the window of a data set's smallest image (px) would be below 16 px."""
        if self._sides(np.array([min(min_height, min_width)]))[0] < _LEAST_SIDE_PX:
            least = int(np.argmax(self._sides(np.arange(10_000)) >= _LEAST_SIDE_PX))
            raise ValueError(
                f"an image of {min_height} x {min_width} px given to a crop for steps of 45 degrees; "
                f"allowed are sides of {least} px and more: leave such images out "
                f"(fastpsl data write --min-px {least}), or use quarter turns of ordinary crops"
            )

    def boxes(self, keys: Keys, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Return int32 [B, 4]: top, left, side, side: upright squares in images of `heights` x `widths`."""
        assert len(heights) == len(widths) == len(keys.indices)
        if self.base != "drawn":
            keys = replace(keys, view=0)
        sides = self._sides(np.minimum(heights, widths))
        margins = margin_px(sides, self.size_px).astype(np.int64)
        random_words = words(keys, Slot.CROP, 2).astype(np.int64)
        out = np.empty((len(sides), 4), np.int32)
        for axis, lengths in enumerate((heights, widths)):
            num_places = lengths - sides - 2 * margins + 1
            places = (random_words[:, axis] * num_places) >> 32 if self.random else (num_places - 1) // 2
            out[:, axis] = margins + places
        out[:, 2] = out[:, 3] = sides
        return out

    def resampling(self, keys: Keys) -> np.ndarray:
        """Return int32 [B]: ISOTROPIC for upright, DIAGONAL for turned windows (kernels/isotropic.py)."""
        if self.base == "drawn":
            turned = rotation_labels(keys) % 2 == 1
        else:
            turned = np.full(len(keys.indices), self.base == 45)
        return np.where(turned, DIAGONAL, ISOTROPIC).astype(np.int32)

    def _sides(self, shorter_px: np.ndarray) -> np.ndarray:
        largest = largest_side_px(shorter_px, self.size_px)
        return np.floor(self.share * largest).astype(np.int64)
