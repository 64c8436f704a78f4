"""A sheet of a network's first filters."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from fastpsl.plots.png import write_png

_FILTER_PX, _GAP_PX, _BACK = 48, 4, 48


def draw_filters(network: nn.Module, path: Path) -> Path:
    """Draw the weights of the first convolution, [out, in, k, k], with one tile per filter.

    Filters of three input channels are drawn in colour. Those of others are drawn in grey, with the channels
    side by side (two channels: gradients along x and y). Each filter is scaled by its own largest absolute
    weight: grey is 0, and white and black are plus and minus that weight.

    Raises:
        ValueError: The network has no convolution.
    """
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise ValueError(
            "the network has no convolution, so no filters to draw: "
            "give labels.npz of the run instead of the run"
        )
    weights = first.weight.detach().cpu().float().numpy()
    weights = weights / np.maximum(np.abs(weights).max((1, 2, 3), keepdims=True), 1e-12)
    values = np.rint(127.5 + 127.5 * weights).astype(np.uint8).transpose(0, 2, 3, 1)
    num, height, width, channels = values.shape
    if channels != 3:
        parts = [np.repeat(values[..., c : c + 1], 3, axis=3) for c in range(channels)]
        values, width = np.concatenate(parts, axis=2), width * channels
    scale = max(1, round(_FILTER_PX / height))
    tiles = values.repeat(scale, axis=1).repeat(scale, axis=2)
    step_y, step_x = height * scale + _GAP_PX, width * scale + _GAP_PX
    columns = max(1, round((num * step_y / step_x) ** 0.5))
    rows = -(-num // columns)
    sheet = np.full((rows * step_y + _GAP_PX, columns * step_x + _GAP_PX, 3), _BACK, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * step_y + _GAP_PX, i % columns * step_x + _GAP_PX
        sheet[top : top + len(tile), left : left + tile.shape[1]] = tile
    return write_png(Image.fromarray(sheet), path)
