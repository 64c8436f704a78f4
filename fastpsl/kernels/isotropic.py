"""Windows upright or turned by 45 degrees, resampled so that only their content tells the two apart.

A network that classifies eight angles must not be able to read them off the resampling. Pixels lie on a
square lattice, so a kernel that passes the lattice's own frequencies reveals the angle. Here both windows are
filtered with Gaussians on the decoded source. These are isotropic, and wide enough that the lattice falls
below the rounding to 8 bits. How wide, and why, stands beside the constants below.

Their percentages, and these, are accuracies for the base, 0 or 45 degrees; chance is 50 %. The detector is a
ridge regression on spectra of luma, of colour and of their local power. It was trained on 400 to 3,000 views
of 96 to 224 px. White noise gives 49 to 51 %. Stored as JPEG 4:2:0 of quality 90 it gives at most 52 %
(standard error 1.3). Quality 75 gives 61 %. What remains is in the file and not in the resampling. It shows
in photos that were turned by random angles and then stored with quality 90 (75). They give 60 % (77 %) for
views of 128 px, by the blocks of their colour, and 99 % (100 %) with sigma 1 for colour.
tests/pipelines/test_rotation_leak.py checks these claims.

The price is sharpness: for photos with a shorter side of 375 (500), a default view keeps 64 % (74 %) of the
mean gradient of an area resize. It takes 0.9 ms upright and 1.15 ms turned, for 375 x 500 to 224 on one EPYC
core.

The points of a lattice turned by 45 degrees lie on a finer upright lattice: point (r, c) is on its line r + c
and column c - r. So both windows are separable and take the same two passes of 1-D weights.
"""

from typing import Any

import numpy as np

# The fifth number of a box (pipelines/decoders/codes.py): upright, or turned by 45 degrees.
ISOTROPIC = 1
DIAGONAL = 2

LUMA_SIGMA_PX = 1.0  # of the source; from 0.9 on, white noise tells a detector nothing (at 0.8: 84 % right)
# Of the source: 1.5 of the half-size lattice on which JPEG's 4:2:0 stores colour. White noise as such a JPEG
# of quality 90 tells the angle in 100 % with sigma 1, in 96 % with 1.5, and in 57 % with 2.
COLOUR_SIGMA_PX = 3.0
SHRINK_SIGMA = 0.5  # of the view, at least, against aliasing; leaks depend on source pixels only
# The weights are cut here along both axes, and normalised to sum to 1. The square shape of a cut is visible:
# at 3 sigma in 100 %, at 3.5 in 66 %, and at 4, for enlarged windows, in 54 %.
REACH_SIGMAS = 4.25
# JPEG's luma (ITU-R BT.601). Colour is stored as blue - luma and red - luma.
RED, GREEN, BLUE = np.float32(0.299), np.float32(0.587), np.float32(0.114)
# Rounds halves up although the sums depend on the order of addition.
HALF = np.float32(0.5 + 2**-13)


def margin_px(side: Any, size_px: int) -> Any:
    """Return the source pixels that both windows need around an upright square, the kernel's reach included.

    `side` is the square's side in source pixels, an integer or an array of integers. The result has whole
    numbers as float64.
    """
    sigma = np.maximum(COLOUR_SIGMA_PX, SHRINK_SIGMA * side / size_px)
    return np.ceil(side * (np.sqrt(0.5) - 0.5) + REACH_SIGMAS * sigma)


def reach_px(side: Any, size_px: int) -> Any:
    """Return the source pixels that an upright window needs around its square: the kernel's reach alone.

    The arguments and the result are those of `margin_px`.
    """
    return np.ceil(REACH_SIGMAS * np.maximum(COLOUR_SIGMA_PX, SHRINK_SIGMA * side / size_px))


def largest_side_px(shorter_px: np.ndarray, size_px: int) -> np.ndarray:
    """Return the largest float64 side with side + 2 * margin_px(side) <= shorter_px, within two pixels.

    It may be negative.
    """
    room = np.asarray(shorter_px, np.float64) - 2
    enlarged = (room - 2 * REACH_SIGMAS * COLOUR_SIGMA_PX) / np.sqrt(2)
    shrunk = room / (np.sqrt(2) + 2 * REACH_SIGMAS * SHRINK_SIGMA / size_px)
    return np.minimum(enlarged, shrunk)
