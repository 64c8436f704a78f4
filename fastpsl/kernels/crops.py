"""The source pixels that a view shows, as integer boxes from draws, before any decoding.

A box is (top, left, height, width) in source pixels. The decoder resizes it to `size_px` x `size_px`.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from fastpsl.kernels.draws import Keys, Slot, library, words

_TRIES = 10  # as in torchvision
Where = Literal["random", "random_middle", "center", "top_left", "top_right", "bottom_left", "bottom_right"]
# The position of a box that is not random: its top and left in halves of the room that it leaves.
_HALVES = {
    "center": (1, 1),
    "top_left": (0, 0),
    "top_right": (0, 2),
    "bottom_left": (2, 0),
    "bottom_right": (2, 2),
}


def _uniform(random_words: np.ndarray) -> np.ndarray:
    return (random_words >> np.uint32(8)) * 2.0**-24


def _below(random_words: np.ndarray, high: np.ndarray) -> np.ndarray:
    return (random_words.astype(np.int64) * high) >> 32


def _random_resized(
    random_words: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    # torchvision.transforms.RandomResizedCrop.get_params. A try takes four words: area, ratio, top, left.
    tried = random_words.reshape(-1, _TRIES, 4)
    areas = (heights.astype(np.int64) * widths)[:, None] * (
        scale[0] + (scale[1] - scale[0]) * _uniform(tried[..., 0])
    )
    log_low, log_high = np.log(ratio[0]), np.log(ratio[1])
    ratios = np.exp(log_low + (log_high - log_low) * _uniform(tried[..., 1]))
    sides = np.rint(np.sqrt(np.stack([areas / ratios, areas * ratios], -1)))  # heights and widths
    limits = np.stack([heights, widths], -1)
    fits = ((sides > 0) & (sides <= limits[:, None])).all(-1)
    first = np.arange(len(fits)), fits.argmax(1)
    sides = sides[first].astype(np.int64)
    starts = _below(tried[first][:, 2:], limits - sides + 1)
    # None of the tries: the middle, cut to the nearest ratio.
    shapes = widths / heights
    low = np.clip(np.rint(widths / ratio[0]), 1, heights)
    high = np.clip(np.rint(heights * ratio[1]), 1, widths)
    rest = np.stack(
        [np.where(shapes < ratio[0], low, heights), np.where(shapes > ratio[1], high, widths)], -1
    ).astype(np.int64)
    is_found = fits.any(1)[:, None]
    boxes = np.where(is_found, starts, (limits - rest) // 2), np.where(is_found, sides, rest)
    return np.concatenate(boxes, 1).astype(np.int32)


def _check_size(size_px: int) -> None:
    if size_px < 1:
        raise ValueError(
            f"crop size {size_px} px given; allowed are 1 px and more: choose a size the network takes"
        )


@dataclass(frozen=True)
class RandomResizedCrop:
    """A torchvision RandomResizedCrop: ten tries, then the central fallback.

    Any image of at least one pixel can be cropped.

    Attributes:
        size_px: The side of the view, in pixels.
        scale: The range of the crop's share of the area, 0 < low <= high <= 1.
        ratio: The range of width / height, log-uniform.

    Raises:
        ValueError: A value is out of its range.
    """

    size_px: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        _check_size(self.size_px)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"crop scale {self.scale} given; allowed is 0 < low <= high <= 1, shares of the area"
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"crop ratio {self.ratio} given; allowed is 0 < low <= high, width / height")

    def check(self, min_height: int, min_width: int) -> None:
        """Raise ValueError unless a data set whose smallest image has this size (px) can be cropped."""
        _check_image(min_height, min_width)

    def boxes(self, keys: Keys, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Return int32 [B, 4]: top, left, height, width, in images of `heights` x `widths` (int32 [B])."""
        inputs, draws = _inputs(keys, heights, widths, 4 * _TRIES), library()
        if draws is None:
            return _random_resized(*inputs, self.scale, self.ratio)
        out = np.empty((len(keys.indices), 4), np.int32)
        addresses = (column.ctypes.data for column in inputs)
        draws.fastpsl_random_resized(*addresses, len(out), *self.scale, *self.ratio, out.ctypes.data)
        return out


@dataclass(frozen=True)
class ShorterSideCrop:
    """A square of `size_px` from an image whose shorter side is resized to `shorter_px`, as one source box.

    The box has the side round(size_px * short / shorter_px), in source pixels, so that one resize does both
    steps.

    Attributes:
        shorter_px: The shorter side after the resize, in pixels.
        size_px: The side of the view in pixels, at most `shorter_px`.
        where: "random" is anywhere in the image, "random_middle" anywhere in its central square. "center",
            "top_left", "top_right", "bottom_left" and "bottom_right" are fixed places.

    Raises:
        ValueError: A value is out of its range.
    """

    shorter_px: int = 256
    size_px: int = 225
    where: Where = "random"

    def __post_init__(self) -> None:
        _check_size(self.size_px)
        if self.where not in get_args(Where):
            raise ValueError(f"crop where={self.where!r} given; allowed are {', '.join(get_args(Where))}")
        if self.size_px > self.shorter_px:
            raise ValueError(
                f"a crop of {self.size_px} px given for a shorter side of {self.shorter_px} px; allowed are "
                f"crops up to the shorter side: lower size_px or raise shorter_px"
            )

    def check(self, min_height: int, min_width: int) -> None:
        """Raise ValueError unless a data set whose smallest image has this size (px) can be cropped."""
        _check_image(min_height, min_width)
        least = -(-self.shorter_px // (2 * self.size_px))
        if min(min_height, min_width) < least:
            raise ValueError(
                f"an image of {min_height} x {min_width} px is too small for a crop of {self.size_px} px "
                f"from a shorter side of {self.shorter_px} px; allowed are sides of {least} px and more: "
                f"leave smaller images out (fastpsl data write --min-px {least})"
            )

    def boxes(self, keys: Keys, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Return int32 [B, 4]: top, left, height, width, in images of `heights` x `widths` (int32 [B])."""
        random_words, heights, widths = _inputs(keys, heights, widths, 2)
        limits = np.stack([heights, widths], -1).astype(np.int64)
        short = limits.min(1, keepdims=True)
        sides = np.clip(np.rint(self.size_px * short / self.shorter_px), 1, short).astype(np.int64)
        if self.where in _HALVES:
            starts = (limits - sides) * np.array(_HALVES[self.where]) // 2
        else:
            room = np.where(self.where == "random_middle", short, limits)
            starts = (limits - room) // 2 + _below(random_words, room - sides + 1)
        return np.concatenate([starts, sides, sides], 1).astype(np.int32)


@dataclass(frozen=True)
class Squashed:
    """The whole image, resized to a square without regard to its aspect ratio.

    Attributes:
        size_px: The side of the view, in pixels.

    Raises:
        ValueError: The side is below 1.
    """

    size_px: int

    def __post_init__(self) -> None:
        _check_size(self.size_px)

    def check(self, min_height: int, min_width: int) -> None:
        """Raise ValueError unless a data set whose smallest image has this size (px) can be cropped."""
        _check_image(min_height, min_width)

    def boxes(self, keys: Keys, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Return int32 [B, 4]: top, left, height, width, in images of `heights` x `widths` (int32 [B])."""
        assert len(heights) == len(widths) == len(keys.indices)
        return np.stack([np.zeros_like(heights), np.zeros_like(widths), heights, widths], 1).astype(np.int32)


def _inputs(
    keys: Keys, heights: np.ndarray, widths: np.ndarray, num_words: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # A single dtype and memory layout, for C.
    assert len(heights) == len(widths) == len(keys.indices)
    sizes = [np.ascontiguousarray(sizes, np.int32) for sizes in (heights, widths)]
    return words(keys, Slot.CROP, num_words), sizes[0], sizes[1]


def _check_image(min_height: int, min_width: int) -> None:
    if min_height < 1 or min_width < 1:
        raise ValueError(
            f"an image of {min_height} x {min_width} px given; allowed are 1 x 1 px and more: "
            f"leave empty images out"
        )
