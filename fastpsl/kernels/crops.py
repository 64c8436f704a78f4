"""The source pixels that a view shows, as integer boxes from draws, before any decoding.

A box is (top, left, height, width) in source pixels. The decoder resizes it to `size_px` x `size_px`.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numba
import numpy as np

from fastpsl.kernels.draws import Keys, Slot, words

# The compiled functions get random words and call no function of another file, because numba's cache would
# not notice an edit of that file.
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


@numba.njit(cache=True, nogil=True)
def _uniform(word: np.uint32) -> np.float64:
    return np.float64(word >> np.uint32(8)) * 2.0**-24


@numba.njit(cache=True, nogil=True)
def _below(word: np.uint32, high: int) -> int:
    return int((np.uint64(word) * np.uint64(high)) >> np.uint64(32))


@numba.njit(cache=True, nogil=True)
def _random_resized(
    out: np.ndarray,
    random_words: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> None:
    # torchvision.transforms.RandomResizedCrop.get_params. A try takes four words: area, ratio, top, left.
    log_low, log_high = np.log(ratio[0]), np.log(ratio[1])
    for row in range(out.shape[0]):
        height, width = int(heights[row]), int(widths[row])
        found = False
        for attempt in range(_TRIES):
            tried = random_words[row, 4 * attempt : 4 * attempt + 4]
            target = height * width * (scale[0] + (scale[1] - scale[0]) * _uniform(tried[0]))
            aspect = np.exp(log_low + (log_high - log_low) * _uniform(tried[1]))
            box_width = int(np.rint(np.sqrt(target * aspect)))
            box_height = int(np.rint(np.sqrt(target / aspect)))
            if 0 < box_width <= width and 0 < box_height <= height:
                out[row, 0] = _below(tried[2], height - box_height + 1)
                out[row, 1] = _below(tried[3], width - box_width + 1)
                out[row, 2] = box_height
                out[row, 3] = box_width
                found = True
                break
        if not found:
            box_height, box_width = height, width
            if width / height < ratio[0]:
                box_height = min(height, max(1, int(np.rint(width / ratio[0]))))
            elif width / height > ratio[1]:
                box_width = min(width, max(1, int(np.rint(height * ratio[1]))))
            out[row, 0] = (height - box_height) // 2
            out[row, 1] = (width - box_width) // 2
            out[row, 2] = box_height
            out[row, 3] = box_width


@numba.njit(cache=True, nogil=True)
def _shorter_side(
    out: np.ndarray,
    random_words: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    shorter_px: int,
    size_px: int,
    random: bool,
    middle: bool,
    halves: tuple[int, int],
) -> None:
    for row in range(out.shape[0]):
        height, width = int(heights[row]), int(widths[row])
        short = min(height, width)
        side = min(short, max(1, int(np.rint(size_px * short / shorter_px))))
        if random:
            rows, columns = (short, short) if middle else (height, width)
            out[row, 0] = (height - rows) // 2 + _below(random_words[row, 0], rows - side + 1)
            out[row, 1] = (width - columns) // 2 + _below(random_words[row, 1], columns - side + 1)
        else:
            out[row, 0] = (height - side) * halves[0] // 2
            out[row, 1] = (width - side) * halves[1] // 2
        out[row, 2] = side
        out[row, 3] = side


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
        size_px: The side of the view.
        scale: The range of the crop's share of the area.
        ratio: The range of width / height, log-uniform.
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
        out = np.empty((len(keys.indices), 4), np.int32)
        inputs = _inputs(keys, heights, widths, 4 * _TRIES)
        scale = (float(self.scale[0]), float(self.scale[1]))
        ratio = (float(self.ratio[0]), float(self.ratio[1]))
        _random_resized(out, *inputs, scale, ratio)
        return out


@dataclass(frozen=True)
class ShorterSideCrop:
    """A square of `size_px` from an image whose shorter side is resized to `shorter_px`, as one source box.

    The box has the side round(size_px * short / shorter_px), in source pixels, so that one resize does both
    steps.

    Attributes:
        shorter_px: The shorter side after the resize.
        size_px: The side of the view.
        where: "random" is anywhere in the image, "random_middle" anywhere in its central square. The other
            values name the centre or a corner.
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
                f"an image of {min_height} x {min_width} px given to a crop of {self.size_px} of "
                f"{self.shorter_px} px, which is less than one of its pixels; allowed are sides of {least} "
                f"px and more: leave it out"
            )

    def boxes(self, keys: Keys, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Return int32 [B, 4]: top, left, height, width, in images of `heights` x `widths` (int32 [B])."""
        out = np.empty((len(keys.indices), 4), np.int32)
        inputs = _inputs(keys, heights, widths, 2)
        random, middle = self.where.startswith("random"), self.where == "random_middle"
        halves = _HALVES.get(self.where, (1, 1))
        _shorter_side(out, *inputs, self.shorter_px, self.size_px, random, middle, halves)
        return out


@dataclass(frozen=True)
class Squashed:
    """The whole image, resized to a square without regard to its aspect ratio."""

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
    # A single dtype and memory layout, because numba compiles anew for any other.
    assert len(heights) == len(widths) == len(keys.indices)
    sizes = [np.ascontiguousarray(sizes, np.int32) for sizes in (heights, widths)]
    return words(keys, Slot.CROP, num_words), sizes[0], sizes[1]


def _check_image(min_height: int, min_width: int) -> None:
    if min_height < 1 or min_width < 1:
        raise ValueError(
            f"an image of {min_height} x {min_width} px given; allowed are 1 x 1 px and more: "
            f"leave empty images out"
        )
