"""The windows of images that a device needs to crop a batch's isotropic views itself."""

from dataclasses import dataclass

import numpy as np

from fastpsl.kernels.isotropic import DIAGONAL, margin_px, reach_px
from fastpsl.pipelines.data.dataset import SampleTable
from fastpsl.pipelines.decoders.boxes import is_isotropic

# A window with more than this many times the bytes of its sample's crops is cropped on the CPU. There nearly
# all its cost is the decoding, and copies and memory would have no bound.
_MOST_CROPS = 8


@dataclass(frozen=True, eq=False)
class Windows:
    """The places of a batch's windows in an arena. A window has all that a sample's isotropic views see.

    Attributes:
        places: int32 [n, 4]: top, left, height, width, in pixels of the upright images. Zeros where the
            decoder is to crop all views of a sample.
        offsets: int64 [n]: where the decoder puts each window in the arena. Its rows lie one after the other.
        num_bytes: The bytes of all windows.
    """

    places: np.ndarray
    offsets: np.ndarray
    num_bytes: int


def plan_windows(rows: SampleTable, boxes: list[np.ndarray], sizes_px: list[int]) -> Windows:
    """Return the windows of a batch, without a gap between them.

    Args:
        rows: The samples, n of them.
        boxes: For each view int32 [n, 5]. One view at least is isotropic.
        sizes_px: The side of each view.
    """
    starts, stops, crop_bytes = [], [], 0
    for box, size_px in zip(boxes, sizes_px, strict=True):
        if not is_isotropic(box):
            continue
        box = box.astype(np.int64)
        sides = box[:, 2]
        beyond = np.where(box[:, 4] == DIAGONAL, margin_px(sides, size_px), reach_px(sides, size_px))
        beyond = beyond.astype(np.int64)[:, None]
        starts.append(box[:, :2] - beyond)
        stops.append(box[:, :2] + box[:, 2:4] + beyond)
        crop_bytes += 3 * size_px**2
    start, stop = np.min(starts, axis=0), np.max(stops, axis=0)
    num_bytes = 3 * (stop - start).prod(1)
    limits = np.stack([rows.height, rows.width], 1)
    # A box that does not lie in its image is the decoder's to refuse.
    fits = (start >= 0).all(1) & (start < stop).all(1) & (stop <= limits).all(1)
    fits &= num_bytes <= _MOST_CROPS * crop_bytes
    places = np.where(fits[:, None], np.concatenate([start, stop - start], 1), 0).astype(np.int32)
    ends = np.where(fits, num_bytes, 0).cumsum()
    return Windows(places, np.concatenate([[0], ends[:-1]]).astype(np.int64), int(ends[-1]))
