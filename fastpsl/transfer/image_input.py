"""Read whole images as a checkpoint's network reads them: resized, normalised and padded to a batch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from fastpsl.engine.options import RunOptions
from fastpsl.evaluation.result import refuse_val
from fastpsl.kernels.draws import Keys
from fastpsl.pipelines.views import Input, ViewSpec, center_view


def check_options(options: RunOptions) -> None:
    """Raise for options that do not hold for whole images.

    Whole images come from a folder in VOC's layout with the test set in it, one at a time.

    Raises:
        ValueError: If --val, --order, --decoder or --on-bad-sample has another value than is allowed.
    """
    refuse_val(options)
    for name, allowed in (
        ("order", ("random",)),
        ("decoder", ("auto", "pillow")),
        ("on_bad_sample", ("raise",)),
    ):
        value = getattr(options, name)
        if value not in allowed:
            raise ValueError(
                f"--{name.replace('_', '-')} {value}: whole images are read with {' or '.join(allowed)}; "
                f"leave it out"
            )


def resized_sides(height: int, width: int, short_px: int, max_long_px: int) -> tuple[int, int]:
    """Return the height and width of an image that is resized with its aspect ratio preserved."""
    scale = min(short_px / min(height, width), max_long_px / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resized(image: Tensor, sides: tuple[int, int]) -> Tensor:
    """Resize an image bilinearly, with antialiasing as PIL does it.

    Args:
        image: uint8 [3, h, w].
        sides: New height and width.

    Returns:
        uint8 [3, *sides].
    """
    if tuple(image.shape[-2:]) == sides:
        return image
    image = F.resize(image, list(sides), antialias=True)
    return image


def normalised(image: Tensor, input: Input) -> Tensor:
    """Normalise an image as `ViewSpec.apply` normalises a crop, on the image's device.

    Call it before padding: a gradient (Sobel) along the padding's edge would not be one of the image.

    Args:
        image: uint8 [3, h, w].
        input: Record of what the network reads.

    Returns:
        float32 [C, h, w].
    """
    view = _view(input)
    draws = view.draw(
        Keys(0, 0, np.zeros(1, np.int64))
    )  # any keys do, because nothing of these views is random
    on_device = [
        {name: torch.as_tensor(value, device=image.device) for name, value in d.items()} for d in draws
    ]
    return view.apply(image[None], on_device, torch.float32)[0]


def denormalised(inputs: Tensor, input: Input) -> Tensor:
    """Turn results of `normalised` back into images to look at.

    Args:
        inputs: [n, C, h, w].
        input: Record of what the network reads.

    Returns:
        float32 [n, 3, h, w] in [0, 1] on the CPU.
    """
    return _view(input).denormalise(inputs)


def padded(images: Sequence[Tensor], multiple_px: int = 32, margin_px: int = 0) -> Tensor:
    """Pad images with zeros to one batch.

    Args:
        images: [C, h, w] each.
        multiple_px: The batch's height and width are multiples of it.
        margin_px: Zeros to the left and at the top of each image, and at least as many to the right and at
            the bottom.

    Returns:
        [B, C, H, W], channels-last.
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


def _view(input: Input) -> ViewSpec:
    """Return a view of the input; its crop is not used."""
    return center_view(input, input.size_px)
