"""The counted maps are those that the kernels are launched with."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from bench import norm_bytes
from bench.norm_bytes import Group, Moved, Options, groups, totals
from fastpsl.kernels.fused_cuda import batch_norm as kernels
from fastpsl.kernels.fused_cuda.batch_norm import Norm, Operand, batch_norm
from fastpsl.kernels.fused_cuda.pool_windows import Windows


class RecordingKernel:
    """A kernel that records the maps of its launches, in two-byte values of a map of `num_values`."""

    def __init__(self, kernel: Any, maps: list[float], num_values: int):
        self.kernel, self.maps, self.num_values = kernel, maps, num_values

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any, **constants: Any) -> None:
            tensors = [each for each in (*arguments, *constants.values()) if isinstance(each, Tensor)]
            kinds = (torch.float16, torch.uint8, torch.int32)
            # Counters and channels are float32, or have one axis.
            large = [each for each in tensors if each.dtype in kinds and each.dim() > 1]
            self.maps += [each.nbytes / 2 / self.num_values for each in large]
            self.kernel[grid](*arguments, **constants)

        return launch


@pytest.mark.parametrize("fork", [False, True])
@pytest.mark.parametrize("adds", ["nothing", "map", "normalised", "nothing, pooled"])
def test_as_many_maps_as_the_kernels_have(adds: str, fork: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    adds, _, is_pooled = adds.partition(", ")
    pool = Windows((3, 3), (2, 2), (1, 1)) if is_pooled else None
    maps: list[float] = []
    x, z, dy = (torch.randn(2, 16, 8, 8).half().to(memory_format=torch.channels_last) for _ in range(3))
    for name in ("moments_pass", "normalise_pass", "pool_pass", "sums_pass", "gradient_pass"):
        monkeypatch.setattr(kernels, name, RecordingKernel(getattr(kernels, name), maps, x.numel()))
    weight, bias = torch.ones(16), torch.zeros(16)
    other = {"nothing": None, "map": z, "normalised": Operand(z, weight, bias, Norm(1e-5))}[adds]
    of = Operand(x.requires_grad_(), weight, bias, Norm(1e-5))
    result = batch_norm(of, other, relu=True, fork=fork, pool=pool)
    results = result if isinstance(result, tuple) else (result,)
    torch.autograd.backward(results, [dy if pool is None else dy[:, :, :4, :4]] * len(results))
    assert sum(maps) == Group(x.numel(), adds, True, fork, 0.25 * bool(pool)).fused().maps


def test_by_hand() -> None:
    alone, residual = Group(1, "nothing", True, False), Group(1, "map", True, True)
    assert [alone.eager().maps, alone.compiled().maps, alone.fused().maps] == [13, 10, 8]
    assert [residual.eager().maps, residual.compiled().maps, residual.fused().maps] == [19, 12, 11.125]
    stem = Group(1, "nothing", True, False, 0.25)
    assert [stem.eager().maps, stem.compiled().maps, stem.fused().maps] == [17.5, 9.125, 5.9375]
    assert totals([Group(10, "nothing", True, False)])["fused"] == Moved(160, 5)


def test_resnet_50() -> None:
    """53 BatchNorms: 33 alone, 12 before a plain shortcut, and 4 before the other 4, normalised ones."""
    options = Options(batch_size=2)
    end_to_end = groups(options, 1, 5)
    kinds = [group.adds for group in end_to_end]
    assert [len(groups(options, number, number)) for number in range(1, 6)] == [1, 9, 12, 18, 9]
    assert [kinds.count(kind) for kind in ("nothing", "map", "normalised")] == [33, 12, 4]
    assert groups(options, 1, 1) == [Group(2 * 64 * 112 * 112, "nothing", True, False)]
    assert [group.pooled for group in end_to_end if group.pooled] == [0.25]
    # All results but the last one are used twice.
    assert sum(group.fork for group in end_to_end) == 16


def test_the_program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["norm_bytes.py", "--backbone", "resnet18", "--side-px", "64"])
    norm_bytes.main()
    output = capsys.readouterr().out
    assert "B2-B4" in output and output.count("fused") == 4
