"""Colours in 313 classes: the bins of the ab plane, and the nearest of them to a colour (Zhang et al., "Colorful image colorization", 2016).

The plane has a grid of 10. Zhang et al. keep the 313 points "which are in-gamut", without saying more. Here a point is a bin where one of the
four cells that it is a corner of meets the convex hull of all sRGB colours' ab: so the four points around any colour are bins. These are 313,
with a from -90 to 100 and b from -110 to 100, and they are the points that Zhang et al. publish with their network.
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
    """float32 [313, 2]: the bins' a and b, by a and then by b. Not to be written to."""
    corners = _outermost_colours()
    angles = np.arange(_NUM_DIRECTIONS) * (2 * np.pi / _NUM_DIRECTIONS)
    directions = np.stack([np.cos(angles), np.sin(angles)])
    # A point's cells are the square of twice the grid's side about it. In no direction is it farther out than hull and square together.
    reach = (corners @ directions).max(0) + GRID * np.abs(directions).sum(0)
    line = np.arange(-13, 14) * GRID
    points = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    bins = points[(points @ directions <= reach).all(1)].astype(np.float32)
    assert bins.shape == (NUM_BINS, 2), bins.shape
    bins.flags.writeable = False
    return bins


def _outermost_colours() -> np.ndarray:
    """float64 [n, 2]: ab of the colours with one of R, G, B at 0 and one at 1: the convex hull of these is that of all."""
    channels = (torch.zeros(256), torch.ones(256), torch.arange(256) / 255)
    colours = torch.cat([torch.stack(order) for order in permutations(channels)], 1)
    return lab(colours[None, :, :, None])[0, 1:, :, 0].T.double().numpy()


def soft_bins(ab: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """The 10 nearest of `bins` float32 [313, 2] to each of `ab` float32 [N, 2], the nearest first: int64 [N, 10]; and their weights, float32 [N, 10].

    Weights are a Gaussian's of sigma 5 at the distances, and sum to 1. Of bins that are equally far, the tenth may be any.
    """
    if len(ab) > _CHUNK:  # distances to all bins are 313 numbers a colour
        parts = [soft_bins(part, bins) for part in ab.split(_CHUNK)]
        return torch.cat([indices for indices, _ in parts]), torch.cat([weights for _, weights in parts])
    squares = (ab[:, :1] - bins[:, 0]).square() + (ab[:, 1:] - bins[:, 1]).square()
    nearest, indices = squares.topk(NUM_NEIGHBOURS, 1, largest=False, sorted=True)
    return indices, torch.softmax(-nearest / (2 * SIGMA**2), 1)
