"""Checks of crop boxes, and the source windows of boxes for the isotropic kernel."""

import numpy as np

from fastpsl.kernels.isotropic import margin_px
from fastpsl.pipelines.decoders.codes import AREA


def is_isotropic(boxes: np.ndarray) -> bool:
    """Return whether a view's boxes, int32 [n, 5], use the isotropic kernel: all of them do, or none."""
    isotropic = boxes[:, 4] != AREA
    assert isotropic.all() or not isotropic.any()
    return bool(isotropic.any())


def cannot(
    boxes: np.ndarray, size_px: int, heights: "np.ndarray | int", widths: "np.ndarray | int"
) -> np.ndarray:
    """Find the boxes that, with their kernel's margin, do not lie inside of the image.

    Args:
        boxes: int32 [n, 5].
        size_px: The side of the crops.
        heights: The height of the image or of each image, in pixels.
        widths: The width of the image or of each image, in pixels.

    Returns:
        bool [n]: True for a box that cannot be cropped.
    """
    tops, lefts, box_heights, box_widths = boxes[:, :4].astype(np.int64).T
    isotropic = boxes[:, 4] != AREA
    margins = np.where(isotropic, margin_px(box_heights, size_px), 0).astype(np.int64)
    wrong = (box_heights < 1) | (box_widths < 1) | (isotropic & (box_heights != box_widths))
    wrong |= (tops < margins) | (lefts < margins)
    return wrong | (tops + box_heights + margins > heights) | (lefts + box_widths + margins > widths)


def windows(boxes: np.ndarray, size_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the source windows of isotropic boxes, each as large as its box and the kernel's margin.

    Args:
        boxes: int32 [n, 5].
        size_px: The side of the crops.

    Returns:
        The starts (top, left) and the shapes of the windows, int32 [n, 2] each, and the boxes relative to
        their windows, int32 [n, 5].
    """
    margins = margin_px(boxes[:, 2], size_px).astype(np.int32)[:, None]
    relative = boxes.copy()
    relative[:, :2] = margins
    return boxes[:, :2] - margins, boxes[:, 2:4] + 2 * margins, relative
