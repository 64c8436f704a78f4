"""Images warped by 3x3 matrices, and AET's pairs of an image and a randomly transformed copy.

AET is Zhang et al., "AET vs. AED", arXiv 1901.04596. The ranges of the draws are those of its code for
CIFAR-10.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastpsl.kernels.draws import Keys, Slot, integers, uniforms
from fastpsl.kernels.layout import finish

Kind = Literal["projective", "affine"]
Sample = Callable[[Tensor, Tensor], Tensor]
NUM_TARGETS = {"projective": 8, "affine": 6}
_CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)  # (x, y), clockwise from the top left
_GREY = 128


def sampled(images: Tensor, grid: Tensor) -> Tensor:
    """Return float32 images [B, C, H, W] at the positions `grid`, [B, H, W, 2] as torch's grid_sample has."""
    return F.grid_sample(images, grid, "bilinear", "border", align_corners=False)


def warp(images: Tensor, matrices: Tensor, fill: float, sample: Sample = sampled) -> Tensor:
    """Warp each image by a matrix, with bilinear interpolation.

    Positions are in pixels from the image's top left corner, so the middle of pixel k is at k + 0.5. PIL's
    Image.transform has the same coefficients. As in PIL, positions outside [0, W) x [0, H) give `fill`, and
    within half a pixel of an edge the edge's pixels are repeated. uint8 is rounded to the nearest, whereas
    PIL truncates.

    Args:
        images: [B, C, H, W], uint8 or floating.
        matrices: float32 [B, 3, 3], from (x, y, 1) of the result to the source, up to a factor.
        fill: The value outside the source, in the images' units.
        sample: The function that interpolates.

    Returns:
        Images of the same shape and dtype, channels-last.
    """
    height, width = images.shape[-2:]
    x, y = (torch.arange(side, dtype=torch.float32, device=images.device) + 0.5 for side in (width, height))
    y = y[:, None]
    # Written out because a matrix product may run in TF32, which is off by 0.1 px at 224 px.
    m = matrices[:, :, :, None, None]
    u, v, w = (m[:, row, 0] * x + m[:, row, 1] * y + m[:, row, 2] for row in range(3))
    u, v = u / w, v / w
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    # On the horizon there is no position. `sample` then takes any position in the image, and `inside` is
    # False.
    grid = torch.stack([u * (2 / width) - 1, v * (2 / height) - 1], -1)
    out = torch.where(inside[:, None], sample(images.to(torch.float32), grid), fill)
    return finish(out.round() if images.dtype == torch.uint8 else out, images.dtype)


@dataclass(frozen=True)
class WarpPair:
    """A pair of each image and a copy under a random transformation, on grey (128 of 255), for AET.

    AET is Zhang et al., arXiv 1901.04596. "projective" scales the four corners about the middle by 0.8 to 1.2
    and turns them by 0, 90, 180 or 270 degrees. It moves each by up to an eighth of the side, in whole
    pixels, along x and y. "affine" turns by up to 180 degrees and moves by up to a fifth of the side along x
    and y, in whole pixels. It scales by 0.7 to 1.3 and shears by up to 30 degrees. All are uniform in their
    ranges. The middle is half a pixel right of and below the image's, as in AET's code and the torchvision of
    its time.

    Attributes:
        size_px: The side of the images, in pixels.
        kind: "projective" or "affine".

    Raises:
        ValueError: A value is not allowed.
    """

    size_px: int = 32
    kind: Kind = "projective"

    def __post_init__(self) -> None:
        if self.size_px < 1:
            raise ValueError(f"images of {self.size_px} px given to WarpPair; allowed are 1 px and more")
        if self.kind not in get_args(Kind):
            raise ValueError(
                f"transformation {self.kind!r} given; allowed are {' and '.join(get_args(Kind))}"
            )

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw the transformations.

        For "projective", the targets are the matrix's first eight numbers, scaled so that the ninth is 1,
        minus a mean, over a deviation. AET's constants, (0, 0, 16, 0, 0, 16, 0, 0) and (1, 1, 20, 1, 1, 20,
        0.015, 0.015), are for 32 px. They follow the side: numbers in px (the third and sixth) grow with it,
        numbers per px (the last two) shrink. For "affine", the targets are the cosine and sine of the turn,
        then the moves along x and y, the scale and the shear. Each is relative to its range, so in [-1, 1].

        Returns:
            A dict of "matrix", float32 [B, 3, 3], of the copies, for `warp`; and "target", float32 [B, 8 or
            6], for the network to predict.
        """
        draw_transforms = _projective if self.kind == "projective" else _affine
        matrix, target = draw_transforms(keys, self.size_px)
        return {"matrix": matrix.astype(np.float32), "target": target.astype(np.float32)}

    def check(self, height: int, width: int) -> None:
        """Raise ValueError unless the images are squares of `size_px`."""
        if (height, width) != (self.size_px, self.size_px):
            raise ValueError(
                f"images of {height} x {width} px given to WarpPair({self.size_px}); "
                f"allowed are squares of {self.size_px} px: give the crop and WarpPair the same size_px"
            )

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        self.check(*shape[2:])
        return 2 * shape[0], *shape[1:]

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the pairs [2 * B, C, S, S], pair by pair, channels-last, in the images' dtype."""
        return self.pairs(images, draw, sampled)

    def pairs(self, images: Tensor, draw: Mapping[str, Tensor], sample: Sample) -> Tensor:
        """Return what a call returns, with the copies interpolated by `sample`."""
        self.check(*images.shape[-2:])
        grey = _GREY if images.dtype == torch.uint8 else _GREY / 255
        copies = warp(images, draw["matrix"], grey, sample)
        return finish(torch.stack([images, copies], 1).flatten(0, 1), images.dtype)


def _projective(keys: Keys, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrices, float64 [B, 3, 3], and the targets, float64 [B, 8]."""
    most = side // 8
    moves = integers(keys, Slot.WARP, 8, 2 * most + 1).reshape(-1, 4, 2) - most
    scale = 0.8 + 0.4 * uniforms(keys, Slot.WARP, 9)[:, 8].astype(np.float64)
    turns = integers(keys, Slot.WARP, 10, 4)[:, 9]
    corners, middle = side * _CORNERS, side / 2 + 0.5
    scaled = middle + scale[:, None, None] * (corners - middle)
    turned = np.take_along_axis(scaled, ((np.arange(4) + turns[:, None]) % 4)[:, :, None], 1)
    numbers = homographies(turned + moves, corners)
    # No horizon crosses the image: in the worst case of these draws the divisor is 0.017 of its value in the
    # middle.
    assert (numbers[:, 6:] @ corners.T + 1 > 0).all()
    mean = side / 2 * np.array([0, 0, 1, 0, 0, 1, 0, 0])
    deviation = np.array([1, 1, 20 / 32 * side, 1, 1, 20 / 32 * side, 0.015 * 32 / side, 0.015 * 32 / side])
    matrix = np.concatenate([numbers, np.ones((len(numbers), 1))], 1).reshape(-1, 3, 3)
    return matrix, (numbers - mean) / deviation


def homographies(points: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """Solve for the homographies that map four points each onto four fixed ones.

    Args:
        points: float64 [B, 4, 2] of (x, y); no three points of a row may be collinear.
        onto: float64 [4, 2], the fixed points.

    Returns:
        float64 [B, 8]: a, b, ..., h of (a x + b y + c, d x + e y + f) / (g x + h y + 1).
    """
    equations = np.zeros((len(points), 4, 2, 8))
    equations[:, :, 0, :2] = equations[:, :, 1, 3:5] = points
    equations[:, :, 0, 2] = equations[:, :, 1, 5] = 1
    equations[..., 6:] = -onto[:, :, None] * points[:, :, None, :]
    coefficients: np.ndarray = np.linalg.solve(equations.reshape(-1, 8, 8), onto.reshape(8, 1))[..., 0]
    return coefficients


def _affine(keys: Keys, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrices, float64 [B, 3, 3], and the targets, float64 [B, 6]."""
    random = 2 * uniforms(keys, Slot.WARP, 5).astype(np.float64) - 1  # [-1, 1)
    turn, shear = np.pi * random[:, 0], np.deg2rad(30) * random[:, 4]
    moves = np.round(0.2 * side * random[:, 1:3])
    scale = 1 + 0.3 * random[:, 3]
    # A point p of the source is shown at middle + move + scale * [[cos t, -sin(t + s)], [sin t, cos(t + s)]]
    # (p - middle), as in torchvision 0.2: a shear turns the image's columns and keeps their length. Here is
    # the inverse.
    angle = turn + shear
    inverse = np.stack([np.cos(angle), np.sin(angle), -np.sin(turn), np.cos(turn)], 1).reshape(-1, 2, 2)
    inverse /= (scale * np.cos(shear))[:, None, None]
    middle = side / 2 + 0.5
    matrix = np.tile(np.eye(3), (len(random), 1, 1))
    matrix[:, :2, :2] = inverse
    matrix[:, :2, 2] = middle - (inverse @ (middle + moves)[:, :, None])[:, :, 0]
    target = np.stack([np.cos(turn), np.sin(turn), *(moves / (0.2 * side)).T, random[:, 3], random[:, 4]], 1)
    return matrix, target
