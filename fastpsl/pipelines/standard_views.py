"""Views of an evaluation: a random crop to learn from, the middle or ten crops to be scored on, as the weights expect them."""

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
# ImageNet's usual "shorter side 256, then the middle 224", in proportion for other sizes.
SHORTER_OF_SIZE = 256 / 224


def train_view(input: Input, size_px: int, crop: TrainCrop = "random_resized") -> ViewSpec:
    """RandomResizedCrop to `size_px`, or the shorter side's crop at `crop`, and flip; then what the weights' input record says.

    "padded", for small pictures: the whole of the middle square, moved by up to an eighth of its side (`Shift`: 4 of 32 px).
    """
    made: Crop = RandomResizedCrop(size_px)
    shift: tuple[Op, ...] = ()
    if crop == "padded":
        made, shift = ShorterSideCrop(size_px, size_px, "center"), (Shift(size_px // 8),)
    elif crop != "random_resized":
        made = _shorter_side(size_px, crop)
    return ViewSpec(made, (*shift, Flip(), *_channels(input)), input.mean, input.std)


def center_view(input: Input, size_px: int, whole: bool = False) -> ViewSpec:
    """Shorter side to `size_px` * 256 / 224, the middle `size_px`, then what the weights' input record says.

    whole: shorter side to `size_px`, as pictures of 32 px are shown whole.
    """
    crop = ShorterSideCrop(size_px, size_px, "center") if whole else _shorter_side(size_px, "center")
    return ViewSpec(crop, _channels(input), input.mean, input.std)


def squashed_view(input: Input, size_px: int) -> ViewSpec:
    """The whole picture made square, `size_px` a side, then what the weights' input record says."""
    return ViewSpec(Squashed(size_px), _channels(input), input.mean, input.std)


def ten_crop_views(input: Input, size_px: int) -> tuple[ViewSpec, ...]:
    """The middle and the four corners of the shorter side at `size_px` * 256 / 224, then the same mirrored: torchvision's TenCrop.

    Mirrored before `_channels`: a mirrored picture's horizontal gradient has the other sign.
    """
    return tuple(
        ViewSpec(_shorter_side(size_px, where), (*flip, *_channels(input)), input.mean, input.std)
        for flip in ((), (Flip(p=1.0),))
        for where in ("center", "top_left", "top_right", "bottom_left", "bottom_right")
    )


def _shorter_side(size_px: int, where: Where) -> ShorterSideCrop:
    return ShorterSideCrop(round(size_px * SHORTER_OF_SIZE), size_px, where)


def _channels(input: Input) -> tuple[Op, ...]:
    """The op that makes the input's channels of a picture's."""
    ops: dict[str, tuple[Op, ...]] = {"L": (Lightness(),), "Sobel": (Sobel(p=1.0),), "SobelXY": (SobelXY(),)}
    return ops.get(input.channels, ())
