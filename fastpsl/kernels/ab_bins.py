"""The 313 colour classes of Zhang et al., "Colorful image colorization" (2016), and a colour's nearest ones.

A class is a bin of the ab plane, a point of a grid with a spacing of 10. Zhang et al. keep the 313 points
"which are in-gamut" and do not define that further. Here a point is kept if one of the four grid cells at it
meets the hull of the colours. This is the convex hull of the ab values of all sRGB colours. So the four grid
points around any colour are bins. This gives 313 bins, with a from -90 to 100 and b from -110 to 100. They
are the points that Zhang et al. publish with their network.
"""

from functools import cache
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.lab import lab

GRID = 10.0
NUM_BINS = 313
NUM_NEIGHBOURS = 10
SIGMA = 5.0
_NUM_DIRECTIONS = 1440
_CHUNK = 2**16


@cache
def ab_bins() -> np.ndarray:
    """Return the bins' a and b as float32 [313, 2], sorted by a and then by b. The array is read-only."""
    corners = _outermost_colours()
    angles = np.arange(_NUM_DIRECTIONS) * (2 * np.pi / _NUM_DIRECTIONS)
    directions = np.stack([np.cos(angles), np.sin(angles)])
    # A point's cells form a square around it whose side is twice the grid's spacing. The point is kept if in
    # no direction it lies farther out than the hull and that square together.
    reach = (corners @ directions).max(0) + GRID * np.abs(directions).sum(0)
    line = np.arange(-13, 14) * GRID
    points = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    bins = points[(points @ directions <= reach).all(1)].astype(np.float32)
    assert bins.shape == (NUM_BINS, 2), bins.shape
    bins.flags.writeable = False
    return bins


def _outermost_colours() -> np.ndarray:
    """Return ab, float64 [n, 2], of the colours with one of R, G, B at 0 and one at 1.

    Their convex hull is that of all colours.
    """
    steps = torch.from_numpy(np.arange(256, dtype=np.float32)) / 255
    channels = (steps * 0, steps * 0 + 1, steps)
    colours = torch.cat([torch.stack(order) for order in permutations(channels)], 1)
    return lab(colours[None, :, :, None])[0, 1:, :, 0].T.double().numpy()


def soft_bins(ab: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 10 bins nearest to each colour and their weights.

    The weights are those of a Gaussian with sigma 5 at the distances, normalised to a sum of 1. If bins are
    equally far, any of them may be the tenth.

    Args:
        ab: float32 [N, 2].
        bins: float32 [313, 2], those of `ab_bins`.

    Returns:
        The bins' indices, int64 [N, 10], nearest first, and their weights, float32 [N, 10].
    """
    if len(ab) > _CHUNK:  # because each colour takes 313 distances
        parts = [soft_bins(part, bins) for part in ab.split(_CHUNK)]
        return torch.cat([indices for indices, _ in parts]), torch.cat([weights for _, weights in parts])
    squares = (ab[:, :1] - bins[:, 0]).square() + (ab[:, 1:] - bins[:, 1]).square()
    nearest, indices = squares.topk(NUM_NEIGHBOURS, 1, largest=False, sorted=True)
    return indices, torch.softmax(-nearest / (2 * SIGMA**2), 1)
