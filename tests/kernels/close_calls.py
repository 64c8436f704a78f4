"""Operations one after the other, and which of the values that they give hang on float32's last bits."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from fastpsl.kernels.enlarge import Enlarge
from fastpsl.kernels.sobel_xy import SobelXY
from fastpsl.kernels.warp import WarpPair


def one_by_one(images: Tensor, ops: Sequence[Any], draws: Sequence[Mapping[str, Tensor]]) -> Tensor:
    for op, draw in zip(ops, draws, strict=True):
        images = op(images, draw)
    return images


def close_calls(images: Tensor, ops: Sequence[Any], draws: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """bool, of the result's shape: where what is rounded to a byte is near a half before. Floating pictures are not rounded."""
    found = torch.zeros(one_by_one(images, ops, draws).shape, dtype=torch.bool)
    for i, op in enumerate(ops):
        if isinstance(op, WarpPair | Enlarge):
            before = one_by_one(images, ops[:i], draws[:i]).float() / 255
            exact = 255 * op(before, draws[i])
            found = (exact - exact.floor() - 0.5).abs() < 1e-3
    if any(isinstance(op, SobelXY) for op in ops):
        found = max_pool2d(found.float(), 3, 1, 1).amax(1, keepdim=True).expand(-1, 2, -1, -1) > 0
    return found
