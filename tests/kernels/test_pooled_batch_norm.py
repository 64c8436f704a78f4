"""Max pools of the kernels, alone and behind BatchNorm, against torch's: values, places and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from fastpsl.kernels.fused_cuda import batch_norm as module
from fastpsl.kernels.fused_cuda.batch_norm import Norm, Operand, batch_norm, max_pool
from fastpsl.kernels.fused_cuda.pool_windows import Windows
from tests.kernels.test_batch_norm import BOUNDS, DEVICE, EPS, MOMENTUM, assert_near, noise
from tests.slow import slow

pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
STEM = Windows((3, 3), (2, 2), (1, 1))
HALVES = Windows((2, 2), (2, 2), (0, 0))
# AlexNet's, one of other heights than widths, and one that leaves values out.
OTHERS = (
    Windows((3, 3), (2, 2), (0, 0)),
    Windows((3, 2), (2, 1), (0, 1)),
    Windows((1, 2), (2, 3), (0, 0)),
)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use so few programs that each has several tiles, and the last one has a tile of its own."""
    monkeypatch.setattr(module, "SUMS_WARPS", 16)
    monkeypatch.setattr(module, "MAPS_WARPS", 24)


def check(shape: tuple[int, ...], windows: Windows, dtype: torch.dtype, relu: bool, fork: bool) -> None:
    """Compare with torch, for a map of so few numbers that most windows have equal maxima.

    Which of them is the maximum follows from rounded values. So torch finds the places in the kernel's own
    unpooled map, and float64 takes the values there.
    """
    x = noise(*shape).round().to(dtype).requires_grad_()
    weight, bias = (noise(shape[1], seed=seed) for seed in (1, 2))
    weight[0] = bias[0] = 0  # the ReLU gets zeros, and lets no gradient through
    if shape[1] > 1:
        weight[1], bias[1] = -0.01, 30  # halves round different values to equal ones
    leaves = [x, weight.requires_grad_(), bias.requires_grad_()]
    running = noise(shape[1]), noise(shape[1]).exp(), torch.zeros((), dtype=torch.int64, device=DEVICE)
    exact_running = [each.double() for each in running[:2]]
    of = Operand(x, weight, bias, Norm(EPS, MOMENTUM, *running))
    result = batch_norm(of, relu=relu, fork=fork, pool=windows)
    results = result if isinstance(result, tuple) else (result,)
    unpooled = batch_norm(Operand(x, weight, bias, Norm(EPS)), relu=relu)
    assert isinstance(unpooled, Tensor)
    pooled, places = F.max_pool2d(unpooled.detach().float(), *windows, return_indices=True)
    assert len(results) == (2 if fork else 1)
    for each in results:
        assert each.dtype == dtype and each.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(each, pooled.to(dtype))

    gradients = [noise(*pooled.shape, dtype=dtype, seed=seed) for seed in (3, 4)][: len(results)]
    torch.autograd.backward(results, gradients)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    mean, var = exact_running
    y = F.batch_norm(exact[0], mean, var, exact[1], exact[2], True, MOMENTUM, EPS)
    y = (F.relu(y) if relu else y).flatten(2).gather(2, places.flatten(2)).view(pooled.shape)
    y.backward(torch.stack(gradients).double().sum(0))
    for leaf, wanted in zip(leaves, exact, strict=True):
        assert_near(leaf.grad, wanted.grad, (10 if leaf.dim() == 1 else 2) * BOUNDS[dtype])
    for value, exact_value in zip(running, exact_running, strict=False):
        assert_near(value, exact_value, 1e-6)
    assert int(running[2]) == 1


@pytest.mark.parametrize(("relu", "fork"), [(True, True), (False, False), slow(True, False)])
@pytest.mark.parametrize("windows", [STEM, HALVES, OTHERS[0], *map(slow, OTHERS[1:])])
def test_it_is_torchs(windows: Windows, relu: bool, fork: bool) -> None:
    check((2, 66, 11, 8), windows, torch.float32, relu, fork)


@pytest.mark.parametrize("dtype", [torch.float16, slow(torch.bfloat16)])
@pytest.mark.parametrize("fork", [False, True])
def test_in_halves(fork: bool, dtype: torch.dtype) -> None:
    check((2, 64, 9, 12), STEM, dtype, True, fork)


@pytest.mark.parametrize("shape", [(1, 3, 1, 2), (2, 1, 2, 1), (3, 8, 1, 1), (1, 130, 3, 5), (1, 16, 16, 16)])
def test_of_any_size(shape: tuple[int, ...]) -> None:
    check(shape, STEM, torch.float32, True, True)


def test_one_gradient_of_two_in_another_layout() -> None:
    x, weight, bias = noise(2, 8, 6, 7).requires_grad_(), noise(8, seed=1), noise(8, seed=2)
    _, second = batch_norm(Operand(x, weight, bias, Norm(EPS)), relu=True, fork=True, pool=STEM)
    second.mean((2, 3)).square().sum().backward()
    exact = x.detach().double().requires_grad_()
    y = F.relu(F.batch_norm(exact, None, None, weight.double(), bias.double(), True, 0.0, EPS))
    F.max_pool2d(y, *STEM).mean((2, 3)).square().sum().backward()
    assert_near(x.grad, exact.grad, 4e-6)


def special(dtype: torch.dtype) -> Tensor:
    """Return a map with equal values, a NaN or two in many windows, and windows of -inf alone."""
    x = noise(2, 20, 9, 10).round().to(dtype)
    x[noise(*x.shape, seed=1) > 1] = torch.nan
    x[:, 1:4, 2:8] = -torch.inf
    x[1, 2, 5] = torch.nan
    return x


def unpacked(places: Tensor, like: Tensor) -> Tensor:
    """Return the places, four bits each, of a pooled map of the size of `like`."""
    eights = (places[:, :, None] >> 4 * torch.arange(8, device=places.device)) & 15
    batch_size, channels, height, width = like.shape
    return eights.flatten(1)[:, :channels].view(batch_size, height, width, channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("windows", [STEM, HALVES, *OTHERS])
def test_places_are_torchs(windows: Windows, relu: bool) -> None:
    x = special(torch.float32)
    y = windows.pooled(x)
    places = torch.zeros(y.numel() // 20, 3, dtype=torch.int32, device=DEVICE)
    module._pool(x, y, places, windows, (None, None, None, None, 0.0), relu)
    expected, indices = F.max_pool2d(F.relu(x) if relu else x, *windows, return_indices=True)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    starts = [
        torch.arange(size, device=DEVICE) * stride - padding
        for size, stride, padding in zip(y.shape[2:], windows.stride, windows.padding, strict=True)
    ]
    i, j = indices // 10 - starts[0][:, None], indices % 10 - starts[1]
    wanted = i * windows.kernel[1] + j
    assert torch.equal(unpacked(places, y), torch.where(expected <= 0, 15, wanted) if relu else wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_pool_of_a_sum_with_a_bias(dtype: torch.dtype) -> None:
    x, bias = special(dtype).requires_grad_(), noise(20, seed=2).to(dtype)
    expected = F.max_pool2d(F.relu((x.float() + bias.float()[:, None, None]).to(dtype)), *STEM)
    result = max_pool(x, STEM, bias, relu=True)
    assert not result.requires_grad and result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, expected.detach(), rtol=0, atol=0, equal_nan=True)
