"""Whole pictures as a checkpoint's network reads them: resized, through the input's own operation, normalised, padded to a batch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from fastpsl.engine.options import RunOptions
from fastpsl.evaluation.held_out import refuse_val
from fastpsl.kernels.draws import Keys
from fastpsl.pipelines.input_record import Input
from fastpsl.pipelines.standard_views import center_view
from fastpsl.pipelines.views import ViewSpec


def check_options(options: RunOptions) -> None:
    """ValueError for what whole pictures are not read by: they come from a folder in VOC's layout, with the test set in it, each as it is."""
    refuse_val(options)
    for name, allowed in (
        ("order", ("random",)),
        ("decoder", ("auto", "torchvision")),
        ("on_bad_sample", ("raise",)),
    ):
        value = getattr(options, name)
        if value not in allowed:
            raise ValueError(
                f"--{name.replace('_', '-')} {value}: whole pictures are read with {' or '.join(allowed)}; leave it out"
            )


def resized_sides(height: int, width: int, short_px: int, max_long_px: int) -> tuple[int, int]:
    """(height, width) with the shorter side `short_px`, or less where the longer one would be above `max_long_px`."""
    scale = min(short_px / min(height, width), max_long_px / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resized(image: Tensor, sides: tuple[int, int]) -> Tensor:
    """uint8 [3, h, w] to uint8 [3, *sides], bilinear; where it shrinks, over all pixels (antialias, as PIL)."""
    if tuple(image.shape[-2:]) == sides:
        return image
    made: Tensor = F.resize(image, list(sides), antialias=True)
    return made


def normalised(image: Tensor, input: Input) -> Tensor:
    """uint8 [3, h, w] to float32 [C, h, w], on its device: what `ViewSpec.apply` makes of a crop.

    To be called before padding: a gradient (Sobel) along the padding's edge would be none of the picture's.
    """
    view = _view(input)
    draws = view.draw(Keys(0, 0, np.zeros(1, np.int64)))  # nothing of these views is random
    on_device = [
        {name: torch.as_tensor(value, device=image.device) for name, value in d.items()} for d in draws
    ]
    return view.apply(image[None], on_device, torch.float32)[0]


def pictures(inputs: Tensor, input: Input) -> Tensor:
    """`normalised`'s result [n, C, h, w] for people: float32 [n, 3, h, w] in [0, 1] on the CPU."""
    return _view(input).pictures(inputs)


def padded(images: Sequence[Tensor], multiple_px: int = 32, margin_px: int = 0) -> Tensor:
    """[C, h, w] each to one [B, C, H, W], channels-last: each at `margin_px` from the left and the top, zeros around it.

    H and W: multiples of `multiple_px` that leave the margin at the right and the bottom, too.
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
    """Its crop serves nobody here."""
    return center_view(input, input.size_px)
