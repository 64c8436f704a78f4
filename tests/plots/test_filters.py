"""Test the figure of a network's first filters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastpsl.plots.contact_sheet import draw_filters
from tests.plots.png_pixels import pixels


def tiles(path: Path, num: int, columns: int, height: int, width: int) -> list[np.ndarray]:
    sheet = pixels(path)
    assert sheet.shape[:2] == (-(-num // columns) * (height + 4) + 4, columns * (width + 4) + 4)
    places = [(i // columns * (height + 4) + 4, i % columns * (width + 4) + 4) for i in range(num)]
    return [sheet[top : top + height, left : left + width] for top, left in places]


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_filters_are_the_weights(tmp_path: Path, channels: int) -> None:
    torch.manual_seed(1)
    first = nn.Conv2d(channels, 6, (4, 3))
    network = nn.Sequential(nn.Sequential(nn.BatchNorm2d(channels), first), nn.Conv2d(6, 2, 1))
    path = draw_filters(network, tmp_path / "filters.png")
    weights: Any = first.weight.detach().numpy()
    side_by_side = 1 if channels == 3 else channels
    columns = max(1, round((6 * 52 / (36 * side_by_side + 4)) ** 0.5))
    for number, tile in enumerate(tiles(path, 6, columns, 48, 36 * side_by_side)):
        max_weight = np.abs(weights[number]).max()
        for c in range(channels):
            for y in range(4):
                for x in range(3):
                    value = 127.5 * (1 + weights[number, c, y, x] / max_weight)
                    left = 12 * x if channels == 3 else 36 * c + 12 * x
                    square = tile[12 * y : 12 * y + 12, left : left + 12]
                    shown = square[..., c] if channels == 3 else square
                    assert np.abs(shown - value).max() <= 0.51


def test_filters_of_nothing(tmp_path: Path) -> None:
    zero = nn.Conv2d(3, 4, 3)
    nn.init.zeros_(zero.weight)
    assert np.isin(pixels(draw_filters(zero, tmp_path / "zero.png")), (48, 128)).all()
    with pytest.raises(ValueError, match="no convolution"):
        draw_filters(nn.Linear(3, 4), tmp_path / "none.png")
