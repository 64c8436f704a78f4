"""Fused BatchNorm, sum and ReLU against torch's in float64: values, gradients and running statistics."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from fastpsl.doctor.proof import (
    EPS,
    NORM_BOUNDS,
    NORM_KINDS,
    STEM,
    Pool,
    by_kernels,
    by_torch,
    near,
    norm_case,
    norms_apart,
    pooled_apart,
)
from fastpsl.doctor.proof import noise as device_noise
from fastpsl.kernels.fused_cuda import batch_norm as module
from fastpsl.kernels.fused_cuda.batch_norm import Norm, Operand, batch_norm, max_pool
from fastpsl.kernels.fused_cuda.pool_windows import Windows
from tests.slow import slow

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use so few programs that each has several tiles, and the last one has a tile of its own."""
    monkeypatch.setattr(module, "num_multiprocessors", lambda _: 1)
    monkeypatch.setattr(module, "MAPS_WARPS", 24)


noise = partial(device_noise, device=DEVICE)
make_case = partial(norm_case, device=DEVICE)


def assert_near(actual: Tensor | None, expected: Tensor | None, bound: float) -> None:
    assert near(actual, expected, bound) <= 1


def check(shape: tuple[int, ...], dtype: torch.dtype, kind: str, relu: bool, fork: bool) -> None:
    assert norms_apart(shape, dtype, DEVICE, fork, kind=kind, relu=relu) <= 1


@pytest.mark.parametrize(
    ("relu", "fork"), [(True, True), (False, False), slow(True, False), slow(False, True)]
)
@pytest.mark.parametrize("kind", NORM_KINDS)
def test_it_is_torchs(kind: str, relu: bool, fork: bool) -> None:
    check((2, 66, 11, 9), torch.float32, kind, relu, fork)


@pytest.mark.parametrize("dtype", [torch.float16, slow(torch.bfloat16)])
@pytest.mark.parametrize("kind", NORM_KINDS)
def test_in_halves(kind: str, dtype: torch.dtype) -> None:
    check((2, 72, 11, 9), dtype, kind, True, kind != "sum")


@pytest.mark.parametrize(
    "shape", [(1, 3, 2, 1), (1, 1, 3, 1), (2, 1, 1, 1), (5, 8, 1, 1), (1, 130, 3, 3), (2, 64, 16, 16)]
)
def test_of_any_size(shape: tuple[int, ...]) -> None:
    """Two values per channel become 1 and -1, with a gradient that is a difference of equal numbers."""
    check(shape, torch.float32, "both", True, True)


@pytest.mark.parametrize("multiprocessors", [40, 108, 114, 128, 132, 142, 148, 170])
def test_programs_that_leave_sums_run_at_once(multiprocessors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On T4, A100, H100 PCIe, RTX 4090, H200, L40S, B200 and RTX 5090, for the maps of ResNet-50."""
    monkeypatch.setattr(module, "num_multiprocessors", lambda _: multiprocessors)
    for channels, side in ((64, 112), (64, 56), (128, 28), (256, 56), (512, 28), (1024, 14), (2048, 7)):
        maps = torch.empty((256, channels, side, side), device="meta")
        division = module._Division(maps, module.MOMENTS_ROWS, leaves_sums=True)
        programs = division.grid[0] - division.num_tiles * (multiprocessors == 132)
        assert programs <= 4 * multiprocessors and division.constants["num_warps"] == 4


def test_a_large_mean_and_a_channel_without_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean 1,000 and deviation 1, over 3,000 positions, with more programs than are added up at once.

    float32 has a spacing of 2^-14 there, and a mean is exact to two of these. A difference of mean squares
    would be off by a hundredth. There is no ReLU, because it may cut values this near to 0.
    """
    monkeypatch.setattr(module, "num_multiprocessors", lambda _: 20)
    case = make_case((4, 4, 27, 29), torch.float32)
    with torch.no_grad():
        x = case.leaves[0]
        x.copy_((x - 1) / 3 + 1000)
        x[:, 1] = 7.25
    expected, leaves, running = by_torch(case, "alone", False)
    (result,) = by_kernels(case, "alone", False, False)
    result.backward(case.gradients[0])
    expected.backward(case.gradients[0].double())
    assert_near(case.running[0], running[0], 2**-22)
    assert_near(case.running[1], running[1], 1e-6)
    assert_near(result.detach(), expected.detach(), 2**-13)
    # In the channel without variance dx is off by 1 / sqrt(eps), 300 times the error of a mean.
    assert_near(case.leaves[0].grad, leaves[0].grad, 1e-4)


def test_equal_bits_each_time_and_backward_twice() -> None:
    results = []
    for _ in range(2):
        case = make_case((2, 66, 11, 9), torch.float32)
        (result,) = by_kernels(case, "both", True, False)
        for _ in range(2):
            result.backward(case.gradients[0], retain_graph=True)
        results.append([result.detach(), *case.running, *(leaf.grad for leaf in case.leaves)])
        # The second call adds to the first one's gradients, and no two parameters share a tensor.
        case.leaves[2].grad.zero_()  # type: ignore[union-attr]
        assert case.leaves[5].grad.abs().sum() > 0  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))  # type: ignore[arg-type]


def test_backward_twice_is_twice_the_gradient() -> None:
    gradients = []
    for times in (1, 2):
        case = make_case((2, 8, 5, 5), torch.float32)
        (result,) = by_kernels(case, "sum", True, False)
        for _ in range(times):
            result.backward(case.gradients[0], retain_graph=True)
        gradients.append([leaf.grad for leaf in case.leaves[:4]])
    assert all(torch.equal(2 * a, b) for a, b in zip(*gradients, strict=True))  # type: ignore[operator, arg-type]


def test_other_layouts_and_one_gradient_of_two() -> None:
    case = make_case((2, 8, 5, 7), torch.float32)
    expected, leaves, _ = by_torch(case, "both", True)
    case.leaves[3] = case.leaves[3].detach().contiguous().requires_grad_()
    first, second = by_kernels(case, "both", True, True)
    assert torch.equal(first, second)
    # A mean over positions gives an expanded gradient, with one value for all positions.
    second.mean((2, 3)).square().sum().backward()
    expected.mean((2, 3)).square().sum().backward()
    for leaf, wanted in zip(case.leaves, leaves, strict=True):
        assert_near(leaf.grad, wanted.grad, 4e-6)


def test_what_is_no_number_stays_so() -> None:
    case = make_case((2, 8, 5, 7), torch.float32)
    with torch.no_grad():
        case.leaves[0][0, 3, 2, 2] = torch.nan
    (result,) = by_kernels(case, "sum", True, False)
    assert result[:, 3].isnan().all() and result[:, :3].isfinite().all()


def test_without_gradients_no_bits_are_kept_and_nothing_moves() -> None:
    case = make_case((2, 8, 5, 7), torch.float32)
    before = [each.clone() for each in case.running]
    with torch.no_grad():
        x, weight, bias, *_ = case.leaves
        result = batch_norm(Operand(x, weight, bias, Norm(EPS)), relu=True)
    assert isinstance(result, Tensor) and not result.requires_grad
    assert_near(
        result.detach(),
        F.relu(F.batch_norm(x.double(), None, None, weight.double(), bias.double(), True)).detach(),
        2e-6,
    )
    assert all(torch.equal(a, b) for a, b in zip(before, case.running, strict=True))


def as_rows(maps: Tensor) -> Tensor:
    return maps.detach().permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


@pytest.mark.skipif(DEVICE.type != "cuda", reason="more programs, and more values, than the interpreter runs")
@pytest.mark.parametrize("side_px", [224, 5800])
def test_as_many_programs_as_in_training_and_more_than_2_to_the_31_values(
    side_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last program always adds up all sums, and positions beyond 2^31 values are right."""
    monkeypatch.undo()
    shape, channels_last = (1, 64, side_px, side_px), torch.channels_last
    x, dy = (
        torch.empty(shape, dtype=torch.float16, device=DEVICE, memory_format=channels_last).normal_()
        for _ in range(2)
    )
    weight, bias = (torch.full((64,), value, device=DEVICE, requires_grad=True) for value in (2.0, 0.5))
    x.requires_grad_()
    first = None
    for _ in range(5):
        x.grad = weight.grad = bias.grad = None
        result = batch_norm(Operand(x, weight, bias, Norm(EPS)), relu=True)
        assert isinstance(result, Tensor)
        y = result
        y.backward(dy)
        sums = torch.stack([weight.grad, bias.grad])  # type: ignore[list-item]
        first = sums if first is None else first
        assert torch.equal(sums, first)
    parts = list(zip(*(as_rows(each).split(2**20) for each in (x, dy, y)), strict=True))
    num_rows = side_px**2
    mean = sum(a.double().sum(0) for a, _, _ in parts) / num_rows
    deviation = (sum((a.double() - mean).square().sum(0) for a, _, _ in parts) / num_rows + EPS).sqrt()
    d_bias = sum((g.double() * (b > 0)).sum(0) for _, g, b in parts)
    d_weight = sum((g.double() * (b > 0) * (a.double() - mean) / deviation).sum(0) for a, g, b in parts)
    assert_near(sums, torch.stack([d_weight, d_bias]), 1e-4)  # type: ignore[list-item]
    for place in (slice(0, 1000), slice(-1000, None)):
        normal = (as_rows(x)[place].double() - mean) / deviation
        assert_near(as_rows(y)[place], (2 * normal + 0.5).clamp(min=0), NORM_BOUNDS[torch.float16])
        g = as_rows(dy)[place].double() * (as_rows(y)[place] > 0)
        dx = 2 / deviation * (g - d_bias / num_rows - normal * d_weight / num_rows)
        assert_near(as_rows(x.grad)[place], dx, NORM_BOUNDS[torch.float16])  # type: ignore[arg-type]


HALVES: Pool = ((2, 2), (2, 2), (0, 0))
# AlexNet's, one of other heights than widths, and one that leaves values out.
OTHERS: list[Pool] = [((3, 3), (2, 2), (0, 0)), ((3, 2), (2, 1), (0, 1)), ((1, 2), (2, 3), (0, 0))]


def check_pooled(
    shape: tuple[int, ...], dtype: torch.dtype, fork: bool, relu: bool = True, pool: Pool = STEM
) -> None:
    assert pooled_apart(shape, dtype, DEVICE, fork, pool=pool, relu=relu) <= 1


@pytest.mark.parametrize(("relu", "fork"), [(True, True), (False, False), slow(True, False)])
@pytest.mark.parametrize("pool", [STEM, HALVES, OTHERS[0], *map(slow, OTHERS[1:])])
def test_pooled_it_is_torchs(pool: Pool, relu: bool, fork: bool) -> None:
    check_pooled((2, 66, 11, 6), torch.float32, fork, relu, pool)


@pytest.mark.parametrize("dtype", [torch.float16, slow(torch.bfloat16)])
@pytest.mark.parametrize("fork", [False, True])
def test_pooled_in_halves(fork: bool, dtype: torch.dtype) -> None:
    check_pooled((2, 64, 9, 12), dtype, fork)


@pytest.mark.parametrize("shape", [(1, 3, 1, 2), (2, 1, 2, 1), (3, 8, 1, 1), (1, 130, 3, 5), (1, 16, 16, 16)])
def test_pooled_of_any_size(shape: tuple[int, ...]) -> None:
    check_pooled(shape, torch.float32, True)


def test_one_gradient_of_two_in_another_layout() -> None:
    x, weight, bias = noise(2, 8, 6, 7).requires_grad_(), noise(8, seed=1), noise(8, seed=2)
    _, second = batch_norm(Operand(x, weight, bias, Norm(EPS)), relu=True, fork=True, pool=Windows(*STEM))
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
@pytest.mark.parametrize("windows", [Windows(*pool) for pool in (STEM, HALVES, *OTHERS)])
def test_places_are_torchs(windows: Windows, relu: bool) -> None:
    x = special(torch.float32)
    y = windows.pooled(x)
    places = torch.zeros(y.numel() // 20, 3, dtype=torch.int32, device=DEVICE)
    module._pool(x, y, places, windows, (None, None, None, None, 0.0), relu)
    x = x.cpu()  # there torch finds a place in a window of -inf alone, too
    expected, indices = F.max_pool2d(F.relu(x) if relu else x, *windows, return_indices=True)
    torch.testing.assert_close(y.cpu(), expected, rtol=0, atol=0, equal_nan=True)
    starts = [
        torch.arange(size) * stride - padding
        for size, stride, padding in zip(y.shape[2:], windows.stride, windows.padding, strict=True)
    ]
    i, j = indices // 10 - starts[0][:, None], indices % 10 - starts[1]
    wanted = i * windows.kernel[1] + j
    found = unpacked(places, y).cpu()
    assert torch.equal(found, torch.where(expected <= 0, 15, wanted) if relu else wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_pool_of_a_sum_with_a_bias(dtype: torch.dtype) -> None:
    x, bias = special(dtype).requires_grad_(), noise(20, seed=2).to(dtype)
    expected = F.max_pool2d(F.relu((x.float() + bias.float()[:, None, None]).to(dtype)), *STEM)
    result = max_pool(x, Windows(*STEM), bias, relu=True)
    assert not result.requires_grad and result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, expected.detach(), rtol=0, atol=0, equal_nan=True)
