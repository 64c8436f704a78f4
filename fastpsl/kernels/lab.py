"""CIE 1976 L*a*b* from sRGB, with the white point D65, and the 313 bins of Colorization in its ab plane.

    linear  = v / 12.92 for v <= 0.04045, else ((v + 0.055) / 1.055)^2.4              (IEC 61966-2-1)
    X, Y, Z = TO_XYZ times the linear values; Y = 0.2126 R + 0.7152 G + 0.0722 B      (IEC 61966-2-1)
    f(t)    = t^(1/3) above (6/29)^3, else t / (3 (6/29)^2) + 4/29                    (CIE 15)
    L*      = 116 f(Y / Yn) - 16                                                      (CIE 15)
    a*      = 500 (f(X / Xn) - f(Y / Yn)),     b* = 200 (f(Y / Yn) - f(Z / Zn))

Xn, Yn, Zn belong to R = G = B = 1 and are the sums of the matrix's rows. So greys have a* = b* = 0 up to
rounding. scikit-image and Kornia have a matrix of six digits and a white point of five. Their values differ
from these by up to 0.02, and their greys from 0 by up to 0.005.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys
from fastpsl.kernels.normalise import finish, result_dtype, to_float32

WEIGHTS = (0.2126, 0.7152, 0.0722)
_DELTA = 6 / 29


def linear_rgb(x: Tensor) -> Tensor:
    """Return values proportional to light from sRGB in [0, 1], in the same shape and dtype."""
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def cie_f(t: Tensor) -> Tensor:
    """Return CIE's f of X, Y or Z relative to white, in the same shape and dtype."""
    return torch.where(t > _DELTA**3, t.clamp(min=_DELTA**3) ** (1 / 3), t / (3 * _DELTA**2) + 4 / 29)


def lightness(x: Tensor) -> Tensor:
    """Return L* / 100, float32 [B, 1, H, W], of sRGB images, float32 [B, 3, H, W] in [0, 1]."""
    red, green, blue = linear_rgb(x).unbind(1)
    return of_luminance((red * WEIGHTS[0] + green * WEIGHTS[1] + blue * WEIGHTS[2])[:, None])


def of_luminance(y: Tensor) -> Tensor:
    """Return L* / 100 of Y relative to white, in the same shape and dtype."""
    return (1.16 * cie_f(y) - 0.16).clamp(0, 1)  # rounding moves white off 1 and black off 0


@dataclass(frozen=True)
class Lightness:
    """A reduction to CIE lightness, for a network that must not see colour, such as colorization's.

    The value is L* / 100, in [0, 1], in one channel.
    """

    channels: ClassVar[str] = "L"

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[0], 1, *shape[2:]

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw nothing: the op is deterministic."""
        return {}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the lightness [B, 1, H, W] of images [B, 3, H, W], in [0, 1] and channels-last.

        Floating images keep their dtype, uint8 images become float32.
        """
        return finish(lightness(to_float32(images)), result_dtype(images))


TO_XYZ = ((0.4124, 0.3576, 0.1805), WEIGHTS, (0.0193, 0.1192, 0.9505))


def lab(x: Tensor) -> Tensor:
    """Convert sRGB images to L*a*b*.

    `x` is float32 [B, 3, H, W] in [0, 1]. The result, of the same shape, has L* in [0, 100], a* in [-86.2,
    98.3] and b* in [-107.9, 94.5].
    """
    red, green, blue = linear_rgb(x).unbind(1)
    fx, fy, fz = (
        cie_f(red * (r / (r + g + b)) + green * (g / (r + g + b)) + blue * (b / (r + g + b)))
        for r, g, b in TO_XYZ
    )
    return torch.stack([(116 * fy - 16).clamp(0, 100), 500 * (fx - fy), 200 * (fy - fz)], 1)


# As in Zhang et al., "Colorful image colorization", 2016: bins 10 apart, of which a colour has 10 neighbours.
GRID = 10.0
NUM_BINS = 313
NUM_NEIGHBOURS = 10
SIGMA = 5.0
_NUM_DIRECTIONS = 1440  # a quarter of a degree apart, which finds the 313 bins; fewer were not tried
_CHUNK = 2**16  # colours, whose distances to all bins take 82 MB


@cache
def ab_bins() -> np.ndarray:
    """Return the bins' a and b as float32 [313, 2], sorted by a and then by b. The array is read-only.

    A bin is a point of a grid with a spacing of 10. Zhang et al. keep the 313 points "which are in-gamut"
    and do not define that further. Here a point is kept if one of the four grid cells at it meets the hull
    of the colours. This is the convex hull of the ab values of all sRGB colours. So the four grid points
    around any colour are bins. They have a from -90 to 100 and b from -110 to 100, and are the points that
    Zhang et al. publish with their network.
    """
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

    `ab` is float32 [N, 2], and `bins` float32 [313, 2], those of `ab_bins`. Returns the bins' indices, int64
    [N, 10], nearest first, and their weights, float32 [N, 10].
    """
    if len(ab) > _CHUNK:  # because each colour takes 313 distances
        parts = [soft_bins(part, bins) for part in ab.split(_CHUNK)]
        return torch.cat([indices for indices, _ in parts]), torch.cat([weights for _, weights in parts])
    squares = (ab[:, :1] - bins[:, 0]).square() + (ab[:, 1:] - bins[:, 1]).square()
    nearest, indices = squares.topk(NUM_NEIGHBOURS, 1, largest=False, sorted=True)
    return indices, torch.softmax(-nearest / (2 * SIGMA**2), 1)
