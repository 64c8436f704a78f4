"""The usual views: a random crop to train on; the middle, ten crops or the whole image to test."""

from typing import Literal

from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop, Squashed, Where
from fastpsl.kernels.flip import Flip
from fastpsl.kernels.lightness import Lightness
from fastpsl.kernels.shift import Shift
from fastpsl.kernels.sobel import Sobel
from fastpsl.kernels.sobel_xy import SobelXY
from fastpsl.pipelines.input_record import Input
from fastpsl.pipelines.views import Crop, Op, ViewSpec

TrainCrop = Where | Literal["random_resized", "padded"]
# ImageNet's usual test view has the shorter side at 256 and shows the middle 224; other sizes keep the
# proportion.
SHORTER_OF_SIZE = 256 / 224


def train_view(input: Input, size_px: int, crop: TrainCrop = "random_resized") -> ViewSpec:
    """Return the view to train on: a crop, a random flip, then the channels of the weights' input record.

    Args:
        input: The input that the weights expect.
        size_px: The side of the view.
        crop: "random_resized", a place in the image after its shorter side is resized, or "padded". "padded"
            is for small images: the whole middle square, shifted by up to an eighth of its side (`Shift`: 4
            of 32 px).
    """
    box: Crop = RandomResizedCrop(size_px)
    shift: tuple[Op, ...] = ()
    if crop == "padded":
        box, shift = ShorterSideCrop(size_px, size_px, "center"), (Shift(size_px // 8),)
    elif crop != "random_resized":
        box = _shorter_side(size_px, crop)
    return ViewSpec(box, (*shift, Flip(), *_channels(input)), input.mean, input.std)


def center_view(input: Input, size_px: int, whole: bool = False) -> ViewSpec:
    """Return the view that shows the middle of the image, with the channels of the weights' input record.

    The shorter side is resized to `size_px` * 256 / 224, or to `size_px` if `whole`, as is usual for images
    of 32 px.
    """
    crop = ShorterSideCrop(size_px, size_px, "center") if whole else _shorter_side(size_px, "center")
    return ViewSpec(crop, _channels(input), input.mean, input.std)


def squashed_view(input: Input, size_px: int) -> ViewSpec:
    """Return the view that squeezes the whole image into a square of `size_px`."""
    return ViewSpec(Squashed(size_px), _channels(input), input.mean, input.std)


def ten_crop_views(input: Input, size_px: int) -> tuple[ViewSpec, ...]:
    """Return torchvision's TenCrop: the middle, the four corners, and the same five mirrored.

    The shorter side is at `size_px` * 256 / 224. The flip comes before `_channels`, because mirroring an
    image changes the sign of its horizontal gradient.
    """
    return tuple(
        ViewSpec(_shorter_side(size_px, where), (*flip, *_channels(input)), input.mean, input.std)
        for flip in ((), (Flip(p=1.0),))
        for where in ("center", "top_left", "top_right", "bottom_left", "bottom_right")
    )


def _shorter_side(size_px: int, where: Where) -> ShorterSideCrop:
    return ShorterSideCrop(round(size_px * SHORTER_OF_SIZE), size_px, where)


def _channels(input: Input) -> tuple[Op, ...]:
    """Return the op that computes the input's channels from an image's."""
    ops: dict[str, tuple[Op, ...]] = {"L": (Lightness(),), "Sobel": (Sobel(p=1.0),), "SobelXY": (SobelXY(),)}
    return ops.get(input.channels, ())
