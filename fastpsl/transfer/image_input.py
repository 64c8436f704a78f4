"""Read whole images as a checkpoint's network reads them: resized, normalised and padded to a batch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from fastpsl.evaluation.protocols import applied
from fastpsl.pipelines.views import Input, center_view


def check_decoder(name: str) -> None:
    """Raise ValueError for a --decoder that does not read whole images, one at a time."""
    if name not in ("auto", "pillow"):
        raise ValueError(f"--decoder {name}: whole images are read with auto or pillow; leave it out")


def resized_sides(height: int, width: int, short_px: int, max_long_px: int) -> tuple[int, int]:
    """Return the height and width of an image that is resized with its aspect ratio preserved."""
    scale = min(short_px / min(height, width), max_long_px / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resized(image: Tensor, sides: tuple[int, int]) -> Tensor:
    """Resize an image, uint8 [3, h, w], bilinearly to [3, *sides], with antialiasing as PIL does it."""
    if tuple(image.shape[-2:]) != sides:
        image = F.resize(image, list(sides), antialias=True)
    return image


def normalised(image: Tensor, input: Input) -> Tensor:
    """Normalise an image, uint8 [3, h, w], to float32 [C, h, w], as `ViewSpec.apply` normalises a crop.

    Call it before padding: a gradient (Sobel) along the padding's edge would not be one of the image.
    """
    return applied(center_view(input, input.size_px), image[None])[0]  # its crop is not used


def denormalised(inputs: Tensor, input: Input) -> Tensor:
    """Turn results of `normalised`, [n, C, h, w], into float32 [n, 3, h, w] in [0, 1] on the CPU."""
    return center_view(input, input.size_px).denormalise(inputs)


def padded(images: Sequence[Tensor], multiple_px: int = 32, margin_px: int = 0) -> Tensor:
    """Pad images [C, h, w] with zeros to one batch [B, C, H, W], channels-last; H and W are multiples.

    `margin_px` zeros are left of and above each image, and at least as many right of and below it.
    """
    height, width = (
        -(-(max(image.shape[side] for image in images) + 2 * margin_px) // multiple_px) * multiple_px
        for side in (1, 2)
    )
    batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    batch = batch.contiguous(memory_format=torch.channels_last)
    for place, image in zip(batch, images, strict=True):
        _, h, w = image.shape
        place[:, margin_px : margin_px + h, margin_px : margin_px + w] = image
    return batch
