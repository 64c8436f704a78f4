"""Gradients of convolutions of maps of few pixels, in bf16 on the CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastpsl.kernels.autocast import ThinMapsInFloat32, autocast

CPU = torch.device("cpu")


def soil_memory() -> None:
    """Leave NaN in the memory that the next tensors get."""
    for size in (10, 100, 1000, 10_000, 100_000):
        torch.full((size,), torch.nan)


@pytest.mark.parametrize("sides", [(1, 1), (2, 1), (1, 5), (2, 2), (3, 3)])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride"),
    [(16, 3, 2), (16, 3, 4), (16, 5, 2), (16, 7, 4), (512, 5, 1), (16, 1, 1)],
)
def test_gradients_are_those_of_float64(
    sides: tuple[int, int], channels: int, kernel: int, stride: int
) -> None:
    """Weights that no pixel meets have the gradient 0. Without the mode it is what the memory held."""
    torch.manual_seed(0)
    conv = nn.Conv2d(12, channels, kernel, stride, kernel // 2, bias=False)
    conv = conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    given = torch.randn(16, 12, *sides).bfloat16()
    images = given.double().requires_grad_()
    weight = conv.weight.detach().bfloat16().double().requires_grad_()
    expected = F.conv2d(images, weight, None, stride, kernel // 2)
    upstream = torch.randn_like(expected).bfloat16()
    expected.backward(upstream.double())
    for _ in range(5):
        conv.zero_grad()
        own = given.clone().requires_grad_()
        soil_memory()
        with autocast(CPU, torch.bfloat16):
            output = conv(own)
        assert output.dtype == torch.bfloat16
        output.backward(upstream)
        for found, wanted in (own.grad, images.grad), (conv.weight.grad, weight.grad), (output, expected):
            assert found is not None and wanted is not None
            bound = 2**-7 * float(wanted.detach().abs().max())
            torch.testing.assert_close(found.double(), wanted, rtol=0, atol=bound)


def test_other_maps_and_weights_are_left_as_they_are() -> None:
    torch.manual_seed(0)
    conv, images = nn.Conv2d(3, 4, 3, 2, padding=1), torch.randn(2, 3, 1, 1)
    with ThinMapsInFloat32():  # without autocast
        assert torch.equal(conv(images), F.conv2d(images, conv.weight, conv.bias, 2, 1))
    for given, stride in (torch.randn(2, 3, 4, 4), 2), (images, 1):
        with torch.autocast("cpu", torch.bfloat16):
            expected = F.conv2d(given, conv.weight, conv.bias, stride, 1)
        with autocast(CPU, torch.bfloat16):
            assert torch.equal(F.conv2d(given, conv.weight, conv.bias, stride, 1), expected)
            assert torch.equal(F.conv2d(given, conv.weight, conv.bias, stride=[stride], padding=1), expected)
    frozen = conv.requires_grad_(False).bfloat16()  # as a folded block
    with autocast(CPU, torch.bfloat16):
        assert frozen(images.bfloat16()).dtype == torch.bfloat16
        assert F.conv2d(images, weight=frozen.weight, padding=1).shape == (2, 4, 1, 1)
