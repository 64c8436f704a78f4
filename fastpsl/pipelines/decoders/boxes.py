"""Which boxes can be cropped, and the windows around those that go through the isotropic kernel."""

import numpy as np

from fastpsl.kernels.isotropic import margin_px
from fastpsl.pipelines.decoders.codes import AREA


def is_isotropic(boxes: np.ndarray) -> bool:
    """Whether a view goes through the isotropic kernel: all of its boxes, int32 [n, 5], or none."""
    kinds = boxes[:, 4] != AREA
    assert kinds.all() or not kinds.any()  # a view is cropped in one way
    return bool(kinds.any())


def cannot(
    boxes: np.ndarray, size_px: int, heights: "np.ndarray | int", widths: "np.ndarray | int"
) -> np.ndarray:
    """bool [n]: boxes that are not wholly in their pictures (px), or not with all that their kernel reaches."""
    tops, lefts, sides, others = boxes[:, :4].astype(np.int64).T
    isotropic = boxes[:, 4] != AREA
    margins = np.where(isotropic, margin_px(sides, size_px), 0).astype(np.int64)
    wrong = (sides < 1) | (others < 1) | (isotropic & (sides != others))
    wrong |= (tops < margins) | (lefts < margins)
    return wrong | (tops + sides + margins > heights) | (lefts + others + margins > widths)


def windows(boxes: np.ndarray, size_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of isotropic boxes: start (top, left) and shape of the windows that hold all that the kernel reaches, int32 [n, 2] each,
    and the boxes in them, int32 [n, 5]."""
    margins = margin_px(boxes[:, 2], size_px).astype(np.int32)[:, None]
    within = boxes.copy()
    within[:, :2] = margins
    return boxes[:, :2] - margins, boxes[:, 2:4] + 2 * margins, within
