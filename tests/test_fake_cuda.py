"""The tests' fake CUDA: it finds waits, accepts everything else, and leaves no trace."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional
from typing_extensions import override

from fastpsl.engine.gpu import AsyncCopy
from fastpsl.kernels.fused import fused_modules
from tests.fake_cuda import DEVICE, fake_cuda
from tests.host_waits import Seen
from tests.python_backward import python_backward


def seen_of(work: Callable[[Tensor], object]) -> Seen:
    with fake_cuda() as cuda:
        x = torch.rand(4, 3, device=cuda.device)
        with cuda.watched() as record:
            work(x)
    return record


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda x: x[0, 0].item(), "_local_scalar_dense"),
        (lambda x: 1 if x.sum() > 0 else 0, "_local_scalar_dense"),
        (lambda x: x.cpu(), "from cuda:0 to cpu blocks"),
        (lambda x: torch.empty(4, 3).copy_(x, non_blocking=True), "memory that is not pinned"),
        (lambda x: torch.tensor([1.0, 2.0], device=DEVICE), "from cpu to cuda:0 blocks"),
        (lambda x: torch.from_numpy(np.ones(3)).to(DEVICE, non_blocking=True), "memory that is not pinned"),
        (lambda x: x[x > 0.5], "boolean index"),
        (lambda x: x.__setitem__(x > 0.5, x[0, 0]), "boolean index"),
        (lambda x: x[torch.tensor([2, 1])], "copy of an index"),
        (lambda x: x.index_put_((torch.arange(2, device=DEVICE),), torch.tensor(1.0)), "copy of the value"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: torch.masked_select(x, x > 0.5), "masked_select"),
        (lambda x: x.repeat_interleave(torch.arange(4, device=DEVICE), 0), "repeat_interleave"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: torch.cuda.synchronize(), "synchronize"),
    ],
)  # fmt: skip
def test_what_the_host_would_wait_for_is_told_with_its_line(
    work: Callable[[Tensor], object], told: str
) -> None:
    errors: list[str] = []

    def work_and_catch(x: Tensor) -> None:
        try:
            work(x)
        except Exception as error:  # noqa: BLE001 - many types of errors, because fake tensors have no value
            errors.append(str(error))

    (wait, *_) = seen_of(work_and_catch).waits
    assert told in wait and "tests/test_fake_cuda.py:" in wait


@pytest.mark.parametrize(
    "work",
    [lambda x: x + torch.ones(4, 3), lambda x: functional.conv2d(x[None, None], torch.ones(1, 1, 3, 3))],
)
def test_tensors_of_two_devices_raise(work: Callable[[Tensor], object]) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)cpu.*test_fake_cuda.py|cuda:0.*cpu"):
        seen_of(work)


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x * 2.5 + 1,
        lambda x: x + torch.tensor(2.0),  # a number on the host is an argument of the kernel
        lambda x: torch.where(x > 0.5, x, 0.0).sum(),
        lambda x: x[torch.arange(3, device=DEVICE)],
        lambda x: x.__setitem__(torch.arange(3, device=DEVICE), 1.0),
        lambda x: torch.arange(3).pin_memory().to(DEVICE, non_blocking=True),
        lambda x: torch.full((3,), 1.5, device=DEVICE),
        lambda x: AsyncCopy(x).values().sum(),
        lambda x: torch.empty(6, pin_memory=True)[2:].to(DEVICE, non_blocking=True),
    ],
)
def test_what_does_not_wait_is_not_told(work: Callable[[Tensor], object]) -> None:
    assert not seen_of(work).waits


@triton.jit
def copy_kernel(source, to, NUM: tl.constexpr):
    at = tl.arange(0, NUM)
    tl.store(to + at, tl.load(source + at))


def test_a_launch_is_counted_and_a_tensor_of_the_host_in_it_raises() -> None:
    record = seen_of(lambda x: copy_kernel[(1,)](x, torch.empty_like(x), NUM=4))
    assert record.kernels == {"copy_kernel": 1}
    with pytest.raises(AssertionError, match="copy_kernel: argument 1 lies on cpu"):
        seen_of(lambda x: copy_kernel[(1,)](x, torch.empty(4, 3), NUM=4))


def test_nothing_stays_behind() -> None:
    names = ("is_available", "current_stream", "Event", "synchronize", "_lazy_init")
    before = [getattr(torch.cuda, name) for name in names]
    places = [(Tensor, "backward"), (Tensor, "pin_memory"), (torch, "empty"), (nn.Module, "_apply")]
    methods = [getattr(*place) for place in places]
    with pytest.raises(KeyError), fake_cuda():
        modules, _ = fused_modules(DEVICE)
        assert modules and torch.cuda.get_device_capability() == (9, 0)
        raise KeyError
    assert all(getattr(torch.cuda, name) is value for name, value in zip(names, before, strict=True))
    assert [getattr(*place) for place in places] == methods
    assert fused_modules.cache_info().currsize == 0
    x = torch.rand(3, requires_grad=True)
    (x * x).sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


class Scaled(Function):
    """A function x times a number plus a part of y, with a second output that no loss uses."""

    @staticmethod
    @override
    def forward(ctx, x, factor, y):
        ctx.factor = factor
        return x * factor + y[:2], y + 1

    @staticmethod
    @override
    def backward(ctx, of_sum, of_rest):
        of_y = of_rest.clone()
        of_y[:2] += of_sum
        return of_sum * ctx.factor, None, of_y


def test_the_backward_pass_in_python_is_that_of_autograd() -> None:
    """Covers branches that meet, broadcasts, a Function with its own backward, and existing gradients."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4))
    scale, moved = nn.Parameter(torch.ones(())), nn.Parameter(torch.rand(3, 4))
    images = torch.rand(2, 3, 4, 4)
    leaves = [*body.parameters(), scale, moved]

    def train_leaves() -> list[Tensor]:
        for leaf in leaves:
            leaf.grad = torch.ones_like(leaf)
        outputs, _ = Scaled.apply(body(images), 3, moved)  # type: ignore[no-untyped-call]
        (outputs.square().mean() * scale + outputs.sum() / scale + scale).backward()
        return [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]

    expected = train_leaves()
    with python_backward():
        result = train_leaves()
    assert len(result) == len(leaves)
    for gradient, expected_gradient in zip(result, expected, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


def test_gradients_of_given_tensors_are_those_of_autograd() -> None:
    x = torch.rand(3, requires_grad=True)
    y = x.exp()
    outputs, grad_outputs = [(y * x).sum(), y], [torch.tensor(2.0), torch.ones(3)]
    expected = torch.autograd.grad(outputs, [x, y], grad_outputs, retain_graph=True)
    with python_backward():
        result = torch.autograd.grad(outputs, [x, y], grad_outputs)
    torch.testing.assert_close(result, expected)
    assert x.grad is None
