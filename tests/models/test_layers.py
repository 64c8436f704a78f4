"""The mean over positions is torch's, and its gradient takes the memory of one position."""

import pytest
import torch
from torch import nn

from fastpsl.models.convolutional import AveragePool, mean_of_positions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 16, 1, 1), (0, 3, 2, 2)])
def test_it_is_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    maps = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn(shape[:2]).to(dtype)
    expected = torch.autograd.grad(maps.mean((2, 3)), maps, gradient)[0]
    means = mean_of_positions(maps)
    (actual,) = torch.autograd.grad(means, maps, gradient)
    assert torch.equal(means, maps.mean((2, 3))) and torch.equal(actual, expected)
    assert torch.equal(AveragePool()(maps), nn.AdaptiveAvgPool2d(1)(maps))


def test_the_gradient_is_expanded() -> None:
    """A layer before it reads it in its own layout, without a copy from another one."""
    strides = []
    maps = torch.randn(2, 3, 4, 4, requires_grad=True)
    middle = maps * 2
    middle.register_hook(lambda gradient: strides.append(gradient.stride()))
    mean_of_positions(middle).sum().backward()
    assert strides == [(3, 1, 0, 0)]
