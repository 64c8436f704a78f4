"""BatchNorm by the batch's statistics, with the sum and the ReLU behind it, forward and backward: what torch's batch_norm, add and relu do.

Bytes of maps, of two-byte values, counted (bench/norm_bytes.py sums them up over a network):

                        forward                                  backward
    relu(n(x))          x twice; y                       6       dy, x twice; dx                               10
    relu(n(x) + z)      x twice, z; y, bits           8.125      dy, x, bits; dz, which is read again with x; dx   14.125 less 2 for y
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import triton
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from fastpsl.kernels.fused.moments import moments_pass
from fastpsl.kernels.fused.norm_passes import gradient_pass, normalise_pass, sums_pass

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CHANNELS = 64
# Rows of a tile: 32 values a thread where each has one load, and 16 where there are several and sums beside them.
MOMENT_ROWS = 64
ROWS = 32
# Of these a thread has every LANES-th, with eight columns or four.
LANES = 16
NUM_WARPS = 4
# Programs: four for each of an H200's 132 multiprocessors where they leave sums behind, which one of them adds up.
NUM_PROGRAMS = 528
# Of what only writes maps, more, so that none waits long for the slowest.
NUM_MAP_PROGRAMS = 4 * NUM_PROGRAMS


class Norm(NamedTuple):
    """What of a BatchNorm has no gradient. running_mean, running_var: float32 [C], num_batches: int64, all None where they shall not move;
    group: the ranks that have statistics together, None for each its own.
    """

    eps: float
    momentum: float = 0.0
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    num_batches: Tensor | None = None
    group: dist.ProcessGroup | None = None


class Operand(NamedTuple):
    """A map that is normalised, and by what: weight, bias: float32 [C]."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    norm: Norm


def batch_norm(
    of: Operand, z: Tensor | Operand | None = None, *, relu: bool = False, fork: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """relu(n(x) + z), z being there or not, or normalised too, [B, C, H, W], channels-last; without `relu` what the ReLU would get.

    Maps: float16, bfloat16 or float32, of one shape and dtype, with more than one value a channel (of a group: with one at least). fork: the
    result twice, for two who use it, so that their gradients are added where they are read. Deterministic; nothing waits for the device.
    """
    norms: tuple[Any, ...] = (
        (z.x, z.weight, z.bias, of.norm, z.norm) if isinstance(z, Operand) else (z, None, None, of.norm, None)
    )
    result: Tensor | tuple[Tensor, Tensor] = _BatchNorm.apply(of.x, of.weight, of.bias, *norms, relu, fork)
    return result


class _BatchNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, z: Tensor | None, z_weight: Tensor | None, z_bias: Tensor | None,
        norm: Norm, z_norm: Norm | None, relu: bool, fork: bool,
    ) -> Any:  # fmt: skip
        maps = [x] if z is None else [x, z]
        assert all(each.dtype in DTYPES and each.dtype == x.dtype and each.shape == x.shape for each in maps)
        assert all(
            each.dtype == torch.float32 for each in (weight, bias, z_weight, z_bias) if each is not None
        )
        x, *others = (each.contiguous(memory_format=torch.channels_last) for each in maps)
        z = others[0] if others else None
        num_channels = x.shape[1]
        num_rows = x.numel() // num_channels
        assert num_rows > (norm.group is None), x.shape
        arrived = torch.zeros(triton.cdiv(num_channels, CHANNELS), dtype=torch.int32, device=x.device)
        y = torch.empty_like(x, memory_format=torch.channels_last)
        bits = None
        if relu and z is not None and any(ctx.needs_input_grad):
            bits = x.new_empty((num_rows, triton.cdiv(num_channels, 8)), dtype=torch.uint8)
        with torch.cuda.device_of(x):
            mean, var, total = _moments(x, norm, arrived)
            z_mean = z_var = None
            if z is not None and z_norm is not None:
                z_mean, z_var, _ = _moments(z, z_norm, arrived)
            stride = _stride(num_rows, num_channels, ROWS, NUM_MAP_PROGRAMS)
            normalise_pass[(stride * len(arrived),)](
                x, z, y, bits, mean, var, weight, bias, z_mean, z_var, z_weight, z_bias, num_rows, num_channels, stride,
                norm.eps, z_norm.eps if z_norm else 0.0, RELU=relu, ROWS=ROWS, CHANNELS=CHANNELS, num_warps=NUM_WARPS,
            )  # fmt: skip
        # z is read again where it was normalised, and its size is x's.
        ctx.save_for_backward(
            x, z if z_norm else None, bits, weight, bias, z_weight, mean, var, z_mean, z_var, arrived, total
        )
        ctx.norm, ctx.z_norm, ctx.relu, ctx.adds = norm, z_norm, relu, z is not None
        ctx.set_materialize_grads(False)
        return (y, y.detach()) if fork else y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [each.contiguous(memory_format=torch.channels_last) for each in gradients if each is not None]
        if not there:
            return (None,) * 10
        dy, dy_2 = there if len(there) == 2 else (there[0], None)
        x, z, bits, weight, bias, z_weight, mean, var, z_mean, z_var, arrived, total = ctx.saved_tensors
        num_channels = x.shape[1]
        num_rows = x.numel() // num_channels
        # What is read again, or is z's gradient, and is not dy.
        g = torch.empty_like(x) if dy_2 is not None or (ctx.relu and ctx.adds) else None
        sums = mean.new_zeros((3 if ctx.z_norm else 2, num_channels))
        size = {"ROWS": ROWS, "CHANNELS": CHANNELS, "num_warps": NUM_WARPS}
        eps = (ctx.norm.eps, ctx.z_norm.eps if ctx.z_norm else 0.0)
        with torch.cuda.device_of(x):
            stride = _stride(num_rows, num_channels, ROWS, NUM_PROGRAMS)
            parts = mean.new_empty((stride, 3, num_channels))
            sums_pass[(stride * len(arrived),)](
                dy, dy_2, x, z, bits, g, parts, arrived, sums, mean, var, weight, bias, z_mean, z_var,
                num_rows, num_channels, stride, *eps, RELU=ctx.relu, GROUP=ROWS // LANES, **size,
            )  # fmt: skip
            dz = g
            if ctx.adds and g is None:
                dz = torch.empty_like(x) if ctx.z_norm else dy
            of_all, share = sums, 1 / num_rows
            if ctx.norm.group is not None:
                of_all, share = sums.clone(), 1.0
                dist.all_reduce(of_all, group=ctx.norm.group)
                of_all /= total
            dx = torch.empty_like(x)
            stride = _stride(num_rows, num_channels, ROWS, NUM_MAP_PROGRAMS)
            gradient_pass[(stride * len(arrived),)](
                dy if g is None else g, x, z, dx, dz if ctx.z_norm else None, of_all, mean, var, weight, bias, z_mean, z_var, z_weight,
                num_rows, num_channels, stride, share, *eps, RELU=ctx.relu and g is None, **size,
            )  # fmt: skip
        # A parameter may keep the tensor that it gets: two must not get one.
        of_z = (sums[2], sums[0].clone()) if ctx.z_norm else (None, None)
        return dx, sums[1], sums[0], dz if ctx.adds else None, *of_z, None, None, None, None


def _stride(num_rows: int, num_channels: int, rows: int, num_programs: int) -> int:
    """Programs for each tile of columns."""
    return min(triton.cdiv(num_rows, rows), triton.cdiv(num_programs, triton.cdiv(num_channels, CHANNELS)))


def _moments(x: Tensor, norm: Norm, arrived: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """(mean, variance, of a group the number of all its rows), and the running statistics moved."""
    num_channels = x.shape[1]
    num_rows = x.numel() // num_channels
    stride = _stride(num_rows, num_channels, MOMENT_ROWS, NUM_PROGRAMS)
    mean, var, parts = (
        torch.empty(size, device=x.device) for size in (num_channels, num_channels, stride * 3 * num_channels)
    )
    running = (None, None, None) if norm.group else (norm.running_mean, norm.running_var, norm.num_batches)
    moments_pass[(stride * len(arrived),)](
        x, parts, arrived, mean, var, *running, num_rows, num_channels, stride, norm.momentum,
        GROUP=MOMENT_ROWS // LANES, ROWS=MOMENT_ROWS, CHANNELS=CHANNELS, num_warps=NUM_WARPS,
    )  # fmt: skip
    return (mean, var, None) if norm.group is None else _of_group(mean, var, num_rows, norm)


def _of_group(mean: Tensor, var: Tensor, num_rows: int, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    """The same of all ranks' rows together."""
    own = torch.cat((mean, var, mean.new_full((1,), num_rows)))
    of_ranks = [torch.empty_like(own) for _ in range(dist.get_world_size(norm.group))]
    dist.all_gather(of_ranks, own, group=norm.group)
    means, variances, counts = torch.stack(of_ranks).split((len(mean), len(var), 1), dim=1)
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    var = ((variances + (means - mean).square()) * counts).sum(0) / total
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches is not None:
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var * (total / (total - 1)), norm.momentum)
        norm.num_batches.add_(1)
    return mean, var, total
