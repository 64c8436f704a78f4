"""Find a block of a backbone by its name, and measure the shapes of the blocks' outputs."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.draws import Keys
from fastpsl.models.backbone import Backbone, check_size
from fastpsl.pipelines.views import ViewSpec


def block_number(text: str, num_blocks: int, names: Sequence[str] = ()) -> int:
    """Return the number of a block, from 1."""
    if text == "final":
        return num_blocks
    if text in names:
        return names.index(text) + 1
    number = text[1:]
    if text[:1] not in ("B", "b") or not number.isdecimal() or not 1 <= int(number) <= num_blocks:
        alternatives = f", which are {', '.join(names)}" if names else ""
        raise ValueError(
            f"--block {text}: this backbone has B1 to B{num_blocks}{alternatives}; final is the last"
        )
    return int(number)


def applied(view: ViewSpec, images: Tensor) -> Tensor:
    """Apply a view of which nothing is random to images, uint8 [N, 3, h, w], on their device, in float32."""
    draws = view.draw(Keys(0, 0, np.zeros(1, np.int64)))
    on_device = [{k: torch.as_tensor(v, device=images.device) for k, v in draw.items()} for draw in draws]
    return view.apply(images, on_device, torch.float32)


@torch.no_grad()
def block_shapes(backbone: Backbone, view: ViewSpec, num_blocks: int | None = None) -> list[tuple[int, ...]]:
    """Return (channels, height, width) of each block's output.

    One black image is passed through the view and the blocks; modes and running statistics stay as they are.
    """
    device, side = next(backbone.parameters()).device, view.crop.size_px
    image = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)
    maps = applied(view, image.contiguous(memory_format=torch.channels_last))
    # The size after the ops is checked, because an op may enlarge the crop.
    check_size(min(maps.shape[2:]), backbone.min_px)
    modes = [(module, module.training) for module in backbone.modules()]
    shapes = []
    for block in backbone.eval().blocks()[:num_blocks]:
        maps = block(maps)
        shapes.append(tuple(maps.shape[1:]))
    for module, training in modes:
        module.training = training
    return shapes
