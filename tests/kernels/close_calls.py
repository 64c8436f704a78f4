"""Operations one after the other, and the results that depend on the last bits of float32."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from fastpsl.kernels.filters import SobelXY
from fastpsl.kernels.geometry import Enlarge, WarpPair


def one_by_one(images: Tensor, ops: Sequence[Any], draws: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Run the operations one after the other."""
    for op, draw in zip(ops, draws, strict=True):
        images = op(images, draw)
    return images


def close_calls(images: Tensor, ops: Sequence[Any], draws: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Return a mask of the result, bool: values that an operation rounds to a byte from near a half."""
    is_close = torch.zeros(one_by_one(images, ops, draws).shape, dtype=torch.bool)
    for i, op in enumerate(ops):
        if isinstance(op, WarpPair | Enlarge):
            inputs = one_by_one(images, ops[:i], draws[:i]).float() / 255
            exact = 255 * op(inputs, draws[i])
            is_close = (exact - exact.floor() - 0.5).abs() < 1e-3
    if any(isinstance(op, SobelXY) for op in ops):
        is_close = max_pool2d(is_close.float(), 3, 1, 1).amax(1, keepdim=True).expand(-1, 2, -1, -1) > 0
    return is_close
