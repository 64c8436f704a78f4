"""Ops that move pixels: flip, shift, hole, enlargement, rotations by 90 and 45 degrees, and AET's warps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, uint8
from torch.nn import functional

from fastpsl.kernels.draws import Keys, Slot, integers, uniforms
from fastpsl.kernels.normalise import check_probability, finish, per_sample


@dataclass(frozen=True)
class Flip:
    """A horizontal flip of each sample with probability `p`, for any dtype.

    Attributes:
        p: The probability, in [0, 1].

    Raises:
        ValueError: The probability is out of its range.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p)

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw "flip", bool [B]: whether to flip each sample."""
        return {"flip": uniforms(keys, Slot.FLIP, 1)[:, 0] < self.p}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the flipped images [B, C, H, W], channels-last, in the dtype of `images`."""
        return finish(torch.where(per_sample(draw["flip"]), images.flip(-1), images), images.dtype)


@dataclass(frozen=True)
class Shift:
    """A shift by up to `max_px` pixels up, down, left and right, each distance equally likely, for any dtype.

    RotNet and AET crop small images in this way: they pad each side with 4 black px and take 32 x 32 of the
    40 x 40.

    Attributes:
        max_px: The largest distance in pixels, 0 or more.

    Raises:
        ValueError: The distance is below 0.
    """

    max_px: int = 4

    def __post_init__(self) -> None:
        if self.max_px < 0:
            raise ValueError(f"a shift of {self.max_px} px given; allowed are 0 px and more")

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw "shift", int64 [B, 2] from 0 to 2 * max_px: the window's top and left in the padded image."""
        return {"shift": integers(keys, Slot.SHIFT, 2, 2 * self.max_px + 1)}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the shifted images [B, C, H, W], channels-last, in the same dtype."""
        height, width = images.shape[-2:]
        padded = functional.pad(images, (self.max_px,) * 4).permute(0, 2, 3, 1)
        tops, lefts = draw["shift"][:, 0, None], draw["shift"][:, 1, None]
        rows = tops + torch.arange(height, device=images.device)
        columns = lefts + torch.arange(width, device=images.device)
        samples = torch.arange(len(images), device=images.device)[:, None, None]
        moved = padded[samples, rows[:, :, None], columns[:, None, :]]
        return finish(moved.permute(0, 3, 1, 2), images.dtype)


@dataclass(frozen=True)
class Hole:
    """A filled square in the middle of each image, which Context-Encoder learns to fill (arXiv 1604.07379).

    Context-Encoder hides 64 of 128 px. It leaves a ring of 4 px inside the hole visible, which is not done
    here.

    Attributes:
        share: The hole's side as a share of the image's, along x and y, in (0, 1).
        fill: The value of each channel in [0, 1]. The default is ImageNet's mean colour.

    Raises:
        ValueError: The share is out of its range.
    """

    share: float = 0.5
    fill: tuple[float, ...] = (0.485, 0.456, 0.406)

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"a hole of {self.share} of the side given; allowed is 0 < share < 1")

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw nothing: the op is deterministic."""
        return {}

    def hidden(self, side_px: int) -> slice:
        """Return the hole's rows or columns on a side of `side_px`; raise ValueError if it is none or all."""
        length = round(self.share * side_px)
        if not 0 < length < side_px:
            raise ValueError(
                f"a hole of {self.share} of {side_px} px is {length} px; allowed are 1 to {side_px - 1} px: "
                f"change the share"
            )
        first = (side_px - length) // 2
        return slice(first, first + length)

    def box(self, num_channels: int, height: int, width: int) -> tuple[slice, slice]:
        """Return the hole's rows and columns in images of this shape; raise ValueError if it does not fit."""
        if len(self.fill) != num_channels:
            raise ValueError(
                f"a hole's colour {self.fill} given for {num_channels} channels; "
                f"allowed is one value per channel: give fill as many"
            )
        return self.hidden(height), self.hidden(width)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        self.box(*shape[1:])
        return shape

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the images [B, C, H, W] with their holes, in the same dtype, channels-last.

        Floating images are in [0, 1]. For uint8 the fill is rounded.
        """
        rows, columns = self.box(*images.shape[1:])
        out = finish(images, images.dtype).clone()
        for channel, value in enumerate(self.fill):
            out[:, channel, rows, columns] = round(255 * value) if images.dtype == uint8 else value
        return out


@dataclass(frozen=True)
class Enlarge:
    """A bilinear resize of any shape to a square of `side_px`, then a centre crop of `size_px` x `size_px`.

    A network for 224 px can so read images of 84 px (UIC, Table 6). The decoder cannot enlarge them: it
    resizes by exact means over areas, which turns enlarged pixels into blocks.

    Attributes:
        side_px: The side of the square, in pixels.
        size_px: The side of the centre crop, 1 to `side_px`.

    Raises:
        ValueError: `size_px` is out of its range.
    """

    side_px: int
    size_px: int

    def __post_init__(self) -> None:
        if not 1 <= self.size_px <= self.side_px:
            raise ValueError(
                f"a middle of {self.size_px} px of {self.side_px} px given; "
                f"allowed are 1 px to the whole side"
            )

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return *shape[:2], self.size_px, self.size_px

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw nothing: the op is deterministic."""
        return {}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the enlarged images [B, C, size_px, size_px], channels-last, in the dtype of `images`.

        uint8 values are rounded to the nearest.
        """
        large = functional.interpolate(images.float(), (self.side_px, self.side_px), mode="bilinear")
        return self.middle(large, images.dtype)

    def middle(self, large: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the middle of the enlarged images, float32 [B, C, side_px, side_px], as `dtype`."""
        start = (self.side_px - self.size_px) // 2
        middle = large[..., start : start + self.size_px, start : start + self.size_px]
        if dtype == torch.uint8:
            middle = middle.round()
        return finish(middle, dtype)


@dataclass(frozen=True)
class Rotate90:
    """A random turn by 0, 90, 180 or 270 degrees, or by 0 or 180, all equally likely. Turns are exact.

    Attributes:
        num: The number of turns, 4 or 2.

    Raises:
        ValueError: `num` is neither.
    """

    num: int = 4

    def __post_init__(self) -> None:
        _check_num(self.num)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        check_square(shape[2], shape[3], self.num)
        return shape

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw "turns", int64 [B] in quarter turns counter-clockwise: 0 to 3, or 0 and 2 if `num` is 2."""
        return {"turns": integers(keys, Slot.ROTATION, 1, self.num)[:, 0] * (4 // self.num)}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the turned images [B, C, H, W], channels-last, in the same dtype."""
        check_square(images.shape[-2], images.shape[-1], self.num)
        turns = draw["turns"]
        x = torch.where(per_sample(turns >= 2), images.flip(-1, -2), images)
        if self.num == 4:
            x = torch.where(per_sample(turns % 2 == 1), x.transpose(-1, -2).flip(-2), x)
        return finish(x, images.dtype)


@dataclass(frozen=True)
class AllTurns:
    """A stack of all turns that `Rotate90(num)` may draw, for each image.

    Attributes:
        num: The number of turns, 4 or 2.

    Raises:
        ValueError: `num` is neither.
    """

    num: int = 4

    def __post_init__(self) -> None:
        _check_num(self.num)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        check_square(shape[2], shape[3], self.num)
        return self.num * shape[0], *shape[1:]

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Return the fixed "turns", int64 [B, num] in quarter turns: 0, 1, 2, 3 or 0, 2 in each row."""
        turns = np.arange(0, 4, 4 // self.num)
        return {"turns": np.tile(turns, (len(keys.indices), 1))}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return all turns of images [B, C, H, W], image by image, as [num * B, C, H, W] in channels-last."""
        check_square(images.shape[-2], images.shape[-1], self.num)
        rotations = [torch.rot90(images, turns, (-2, -1)) for turns in range(0, 4, 4 // self.num)]
        return finish(torch.stack(rotations, 1).flatten(0, 1), images.dtype)


def _check_num(num: int) -> None:
    if num not in (2, 4):
        raise ValueError(f"{num} rotations given; allowed are 2 (half turns) and 4 (quarter turns)")


def check_square(height: int, width: int, num: int) -> None:
    """Raise ValueError if `num` is 4 and the images are not square."""
    if num == 4 and height != width:
        raise ValueError(
            f"images of {height} x {width} px given to quarter turns; "
            f"allowed are squares: crop first, or use num=2"
        )


NUM_ROTATIONS = 8
_quarter_turns = Rotate90(4)


def rotation_labels(keys: Keys) -> np.ndarray:
    """Draw a rotation label per sample, int64 [B] in 0..7, all equally likely."""
    return integers(keys, Slot.ROTATION, 1, NUM_ROTATIONS)[:, 0]


@dataclass(frozen=True)
class Rotate45:
    """The turns of a view whose crop is a `RotationCrop` of base "drawn": eight rotations in 45-degree steps.

    Label l shows the image turned by 45 * l degrees counter-clockwise. `RotationCrop` has the decoder sample
    the base l % 2, upright or turned by 45 degrees (kernels/isotropic.py). The l // 2 quarter turns are made
    here. Both follow from one draw. To get all eight rotations at once, use two views, one per base, with
    `AllTurns(4)`. Multiples of 90 degrees need none of this: ordinary crops and `Rotate90` are exact.

    Such a view must not have a `Flip`. An
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

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return _quarter_turns.out_shape(shape)

    def draw(self, keys: Keys) -> dict[str, np.ndarray]:
        """Draw "label", int64 [B] in 0..7 (steps of 45 degrees), and "turns", int64 [B] = label // 2."""
        labels = rotation_labels(keys)
        return {"label": labels, "turns": labels // 2}

    def __call__(self, images: Tensor, draw: Mapping[str, Tensor]) -> Tensor:
        """Return the turned images [B, C, S, S], channels-last, in the same dtype."""
        return _quarter_turns(images, draw)


Kind = Literal["projective", "affine"]
Sample = Callable[[Tensor, Tensor], Tensor]
NUM_TARGETS = {"projective": 8, "affine": 6}
_CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)  # (x, y), clockwise from the top left
_GREY = 128


def sampled(images: Tensor, grid: Tensor) -> Tensor:
    """Return float32 images [B, C, H, W] at the positions `grid`, [B, H, W, 2] as torch's grid_sample has."""
    return functional.grid_sample(images, grid, "bilinear", "border", align_corners=False)


def warp(images: Tensor, matrices: Tensor, fill: float, sample: Sample = sampled) -> Tensor:
    """Warp each image by a matrix, with bilinear interpolation.

    Positions are in pixels from the image's top left corner, so the middle of pixel k is at k + 0.5. PIL's
    Image.transform has the same coefficients. As in PIL, positions outside [0, W) x [0, H) give `fill`, and
    within half a pixel of an edge the edge's pixels are repeated. uint8 is rounded to the nearest, whereas
    PIL truncates.

    `images` is [B, C, H, W], uint8 or floating, as the result, which is channels-last. `matrices` is float32
    [B, 3, 3], from (x, y, 1) of the result to the source, up to a factor. `fill` is in the images' units.
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

    AET is Zhang et al., "AET vs. AED", arXiv 1901.04596. The ranges are those of its code for CIFAR-10.
    "projective" scales the four corners about the middle by 0.8 to 1.2
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

    `points` is float64 [B, 4, 2] of (x, y), of which no three in a row are collinear, and `onto` float64 [4,
    2]. The result is float64 [B, 8]: a, b, ..., h of (a x + b y + c, d x + e y + f) / (g x + h y + 1).
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
