"""The two views of an evaluation: a random crop to learn from and the middle to be scored on, as the weights expect them."""

from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.kernels.flip import Flip
from fastpsl.kernels.lightness import Lightness
from fastpsl.kernels.sobel import Sobel
from fastpsl.kernels.sobel_xy import SobelXY
from fastpsl.pipelines.input_record import Input
from fastpsl.pipelines.views import Op, ViewSpec

# ImageNet's usual "shorter side 256, then the middle 224", in proportion for other sizes.
SHORTER_OF_SIZE = 256 / 224


def train_view(input: Input, size_px: int) -> ViewSpec:
    """RandomResizedCrop to `size_px` and flip, then what the weights' input record says."""
    return ViewSpec(RandomResizedCrop(size_px), (Flip(), *_channels(input)), input.mean, input.std)


def center_view(input: Input, size_px: int) -> ViewSpec:
    """Shorter side to `size_px` * 256 / 224, the middle `size_px`, then what the weights' input record says."""
    crop = ShorterSideCrop(round(size_px * SHORTER_OF_SIZE), size_px, where="center")
    return ViewSpec(crop, _channels(input), input.mean, input.std)


def _channels(input: Input) -> tuple[Op, ...]:
    """The op that makes the input's channels of a picture's."""
    ops: dict[str, tuple[Op, ...]] = {"L": (Lightness(),), "Sobel": (Sobel(p=1.0),), "SobelXY": (SobelXY(),)}
    return ops.get(input.channels, ())
