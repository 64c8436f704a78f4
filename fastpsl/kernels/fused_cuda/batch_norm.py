"""BatchNorm with batch statistics, fused with the sum, ReLU and max pool behind it, forward and backward.

It computes what torch's batch_norm, add, relu and max_pool2d do. The table counts the passes over a map and
their bytes per value of a half type. A pass is written as "read to written", passes are separated by
semicolons. n is the normalisation. b and p are kept for the backward pass: one bit per value, and four bits
per pooled value, the place of the maximum. The last row is for windows of stride 2, and bytes are per value
of x:

    result             forward                    bytes    backward                              bytes
    relu(n(x))         x; x to y                    6      dy, x; dy, x to dx                     10
    relu(n(x) + z)     x; x, z to y, b              8 1/8  dy, x, b to dz; dz, x to dx            12 1/8
    relu(n(x) + n(z))  x; z; x, z to y, b          10 1/8  dy, x, z, b to g; g, x, z to dx, dz    18 1/8
    pool(relu(n(x)))   x; x to y, p                 4 5/8  dy, p, x; dy, p, x to dx                7 1/4

A second gradient of y, if two users share it (`fork`), costs 2 more and saves the 6 of adding the two before.
Behind a pool it costs 1 and saves 1 1/2. A result without z takes two launches forward, two backward and a
tensor of zeros. Each n(z) takes one launch more.

The passes compute y = relu(n(x) + n(z)), relu(n(x) + z) or relu(n(x)), or these without the ReLU. Here n(x)
= (x - mean) / sqrt(var + eps) * weight + bias. Maps are matrices as in moments.py, of one dtype. Arithmetic
is float32; y and z's gradient are rounded once.

The backward pass must know where the ReLU was 0. For a single map this follows from x, by the arithmetic of
the forward pass. With a sum, one bit per value stores it, which costs 1/16 of reading y or z.

With a max pool behind, y and dy are pooled maps, and `pool_pass` takes the place of `normalise_pass`. It
leaves four bits per pooled value, the maximum's place (see pool_windows.py), which also tells what the ReLU
cut.

Forward, `moments_pass` goes from a map's beginning to its end, and `normalise_pass` back. Backward,
`sums_pass` begins where dy was written last.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from typing_extensions import override

from fastpsl.kernels.fused_cuda.moments import groups, is_last, moments_pass, part_of_program
from fastpsl.kernels.fused_cuda.pool_windows import (
    NO_PLACE,
    Windows,
    columns_of_eights,
    from_windows,
    largest,
    pack,
    unpack,
)

# mypy: disable-error-code="no-untyped-def"

# The sizes of a map and of its pooled map.
SIZES = ("height", "width", "pooled_height", "pooled_width")


@triton.jit
def affine(mean, var, weight, bias, eps, channel, mask):
    """Load the channels' mean, 1 / deviation, weight and bias, float32 [1, CHANNELS]."""
    centre = tl.load(mean + channel, mask=mask, other=0)[None, :]
    inverse = tl.rsqrt(tl.load(var + channel, mask=mask, other=0) + eps)[None, :]
    slope = tl.load(weight + channel, mask=mask, other=0)[None, :]
    return centre, inverse, slope, tl.load(bias + channel, mask=mask, other=0)[None, :]


@triton.jit
def is_cut(value, pointer):
    """Return whether the ReLU cuts `value`, float32, as it is stored; NaN is not cut, as in torch."""
    return value.to(pointer.dtype.element_ty).to(tl.float32) <= 0


@triton.jit(do_not_specialize=["num_rows", "stride"])
def normalise_pass(
    x, z, y, bits, mean, var, weight, bias, z_mean, z_var, z_weight, z_bias,
    num_rows, num_channels, stride, eps, z_eps,
    RELU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute y, [num_rows, C], from x and z.

    `z` is None or a map to add, which is normalised if z_mean is not None. `bits` is None or uint8
    [num_rows, C / 8 rounded up], and gets a bit for each value that the ReLU cuts.
    """
    channel, is_channel, tile, number = part_of_program(num_channels, CHANNELS)
    num_tiles = tl.cdiv(tl.cdiv(num_rows, ROWS) - number, stride)
    last = (number + (num_tiles - 1) * stride) * ROWS
    row = tl.arange(0, ROWS)[:, None]
    centre, inverse, slope, offset = affine(mean, var, weight, bias, eps, channel, is_channel)
    scale = inverse * slope
    if z_mean is not None:
        z_centre, inverse, slope, z_offset = affine(
            z_mean, z_var, z_weight, z_bias, z_eps, channel, is_channel
        )
        z_scale = inverse * slope
    place = last.to(tl.int64) * num_channels + row * num_channels + channel[None, :]
    if bits is not None:
        width, column, is_column = columns_of_eights(num_channels, tile, CHANNELS)
        there = bits + last.to(tl.int64) * width + row * width + column
    for step in range(num_tiles):
        is_row = last - step * stride * ROWS + row < num_rows
        mask = is_row & is_channel[None, :]
        value = (tl.load(x + place, mask=mask, other=0).to(tl.float32) - centre) * scale + offset
        if z is not None:
            other = tl.load(z + place, mask=mask, other=0).to(tl.float32)
            if z_mean is not None:
                other = (other - z_centre) * z_scale + z_offset
            value += other
        if RELU:
            cut = is_cut(value, y)
            value = tl.where(cut, 0.0, value)
            if bits is not None:
                tl.store(there, pack(cut.to(tl.int32), 1, tl.uint8), mask=is_row & is_column)
                there -= stride * ROWS * width
        tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)
        place -= stride * ROWS * num_channels


@triton.jit(do_not_specialize=["num_rows", "stride", *SIZES])
def pool_pass(
    x, y, places, mean, var, weight, bias, num_rows, num_channels, stride, eps,
    height, width, pooled_height, pooled_width,
    RELU: tl.constexpr, WINDOWS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute y, [num_rows, C], the max pool of relu(n(x)), or of n(x) without the ReLU.

    n(x) is x + bias if mean is None, and x if bias is None too. `places` is None or int32 [num_rows, C / 8
    rounded up], and gets the places of the maxima, or NO_PLACE where the ReLU cuts.
    """
    channel, is_channel, tile, number = part_of_program(num_channels, CHANNELS)
    num_tiles = tl.cdiv(tl.cdiv(num_rows, ROWS) - number, stride)
    last = (number + (num_tiles - 1) * stride) * ROWS
    num_eights, eight, is_eight = columns_of_eights(num_channels, tile, CHANNELS)
    centre, scale, offset = 0.0, 1.0, 0.0
    if mean is not None:
        centre, inverse, slope, offset = affine(mean, var, weight, bias, eps, channel, is_channel)
        scale = inverse * slope
    elif bias is not None:
        offset = tl.load(bias + channel, mask=is_channel, other=0).to(tl.float32)[None, :]
    channel, is_channel = channel[None, :], is_channel[None, :]
    for step in range(num_tiles):
        row = last - step * stride * ROWS + tl.arange(0, ROWS)[:, None]
        is_row = row < num_rows
        value, place = largest(
            x, centre, scale, offset, row, is_row, channel, is_channel, num_channels,
            height, width, pooled_height, pooled_width, WINDOWS, y.dtype.element_ty,
        )  # fmt: skip
        if RELU:
            # A ReLU never falls, so the maximum may be taken before it.
            cut = value <= 0
            value, place = tl.where(cut, 0.0, value), tl.where(cut, NO_PLACE, place)
        row = row.to(tl.int64)
        tl.store(y + row * num_channels + channel, value.to(y.dtype.element_ty), mask=is_row & is_channel)
        if places is not None:
            tl.store(places + row * num_eights + eight, pack(place, 4, tl.int32), mask=is_row & is_eight)


@triton.jit(do_not_specialize=["num_rows", "stride", *SIZES])
def sums_pass(
    dy, dy_2, x, z, bits, dz, parts, arrived, sums, mean, var, weight, bias, z_mean, z_var,
    num_rows, num_channels, stride, eps, z_eps,
    RELU: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    places=None, height=0, width=0, pooled_height=0, pooled_width=0, WINDOWS: tl.constexpr = None,
):  # fmt: skip
    """Compute sums, float32 [3, C]: of g, of g * n(x) and, if z_mean is not None, of g * n(z).

    g is dy (+ dy_2) where the ReLU did not cut, and n is taken before weight and bias. `dz` is None or gets
    g. `bits` is that of `normalise_pass` or None. `parts` is scratch memory, float32 [stride, 3, C].
    `arrived` is as in `moments_pass`. If `places` is not None, dy and dy_2 are gradients of `pool_pass`'s y.
    """
    channel, is_channel, tile, number = part_of_program(num_channels, CHANNELS)
    num_tiles = tl.cdiv(tl.cdiv(num_rows, ROWS) - number, stride)
    last = (number + (num_tiles - 1) * stride) * ROWS
    row = tl.arange(0, ROWS)[:, None]
    centre, inverse, slope, offset = affine(mean, var, weight, bias, eps, channel, is_channel)
    sum_0 = tl.zeros([ROWS // GROUP, CHANNELS], tl.float32)
    sum_x = tl.zeros([ROWS // GROUP, CHANNELS], tl.float32)
    sum_z = tl.zeros([ROWS // GROUP, CHANNELS], tl.float32)
    if z_mean is not None:
        z_centre, z_inverse, _, _ = affine(z_mean, z_var, weight, bias, z_eps, channel, is_channel)
    place = last.to(tl.int64) * num_channels + row * num_channels + channel[None, :]
    if bits is not None:
        width, column, is_column = columns_of_eights(num_channels, tile, CHANNELS)
        there = bits + last.to(tl.int64) * width + row * width + column
    for step in range(num_tiles):
        is_row = last - step * stride * ROWS + row < num_rows
        mask = is_row & is_channel[None, :]
        if places is not None:
            gradient = from_windows(
                dy, dy_2, places, last - step * stride * ROWS + row, is_row, channel[None, :],
                is_channel[None, :], num_channels, tile, height, width, pooled_height, pooled_width, WINDOWS,
            )  # fmt: skip
        else:
            gradient = tl.load(dy + place, mask=mask, other=0).to(tl.float32)
            if dy_2 is not None:
                gradient += tl.load(dy_2 + place, mask=mask, other=0).to(tl.float32)
                gradient = gradient.to(dy.dtype.element_ty).to(tl.float32)
        centred = tl.load(x + place, mask=mask, other=0).to(tl.float32) - centre
        if RELU:
            if bits is not None:
                cut = unpack(tl.load(there, mask=is_row & is_column, other=0), 1) != 0
                there -= stride * ROWS * width
            else:
                cut = is_cut(centred * (inverse * slope) + offset, x)
            gradient = tl.where(cut, 0.0, gradient)
        if dz is not None:
            tl.store(dz + place, gradient.to(dz.dtype.element_ty), mask=mask)
        sum_0 += tl.sum(groups(gradient, GROUP), 0)
        sum_x += tl.sum(groups(gradient * centred, GROUP), 0)
        if z_mean is not None:
            centred = tl.load(z + place, mask=mask, other=0).to(tl.float32) - z_centre
            sum_z += tl.sum(groups(gradient * centred, GROUP), 0)
        place -= stride * ROWS * num_channels

    part = parts + number * 3 * num_channels + channel
    tl.store(part, tl.sum(sum_0, 0), mask=is_channel)
    tl.store(part + num_channels, tl.sum(sum_x * inverse, 0), mask=is_channel)
    if z_mean is not None:
        tl.store(part + 2 * num_channels, tl.sum(sum_z * z_inverse, 0), mask=is_channel)
    if is_last(arrived + tile, stride):
        lane = tl.arange(0, ROWS // GROUP)[:, None]
        for kind in tl.static_range(3 if z_mean is not None else 2):
            total = tl.zeros([ROWS // GROUP, CHANNELS], tl.float32)
            for start in range(0, stride, ROWS // GROUP):
                of_lane = parts + ((start + lane) * 3 + kind) * num_channels + channel[None, :]
                mask = (start + lane < stride) & is_channel[None, :]
                total += tl.load(of_lane, mask=mask, other=0, cache_modifier=".cg")
            tl.store(sums + kind * num_channels + channel, tl.sum(total, 0), mask=is_channel)


@triton.jit(do_not_specialize=["num_rows", "stride", *SIZES])
def gradient_pass(
    g, x, z, dx, dz, sums, mean, var, weight, bias, z_mean, z_var, z_weight,
    num_rows, num_channels, stride, share, eps, z_eps,
    RELU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    places=None, dy_2=None, height=0, width=0, pooled_height=0, pooled_width=0, WINDOWS: tl.constexpr = None,
):  # fmt: skip
    """Compute dx = weight / deviation * (g - mean of g - n(x) * mean of g * n(x)), [num_rows, C].

    The means are `sums` * `share`. RELU means that g is not cut yet; the cut follows from x. `dz` is z's
    gradient, by the same formula, if z_mean is not None. If `places` is not None, g is that of the pooled
    gradients `g` (+ `dy_2`), as in `sums_pass`.
    """
    channel, is_channel, tile, number = part_of_program(num_channels, CHANNELS)
    row = tl.arange(0, ROWS)[:, None]
    centre, inverse, slope, offset = affine(mean, var, weight, bias, eps, channel, is_channel)
    scale = inverse * slope
    mean_g = tl.load(sums + channel, mask=is_channel, other=0)[None, :] * share
    mean_x = tl.load(sums + num_channels + channel, mask=is_channel, other=0)[None, :] * share * inverse
    if z_mean is not None:
        z_centre, z_inverse, z_slope, _ = affine(z_mean, z_var, z_weight, bias, z_eps, channel, is_channel)
        mean_z = (
            tl.load(sums + 2 * num_channels + channel, mask=is_channel, other=0)[None, :] * share * z_inverse
        )
    place = number.to(tl.int64) * ROWS * num_channels + row * num_channels + channel[None, :]
    for start in range(number * ROWS, num_rows, stride * ROWS):
        mask = (start + row < num_rows) & is_channel[None, :]
        if places is not None:
            gradient = from_windows(
                g, dy_2, places, start + row, start + row < num_rows, channel[None, :],
                is_channel[None, :], num_channels, tile, height, width, pooled_height, pooled_width, WINDOWS,
            )  # fmt: skip
        else:
            gradient = tl.load(g + place, mask=mask, other=0).to(tl.float32)
        centred = tl.load(x + place, mask=mask, other=0).to(tl.float32) - centre
        if RELU:
            cut = is_cut(centred * scale + offset, x)
            gradient = tl.where(cut, 0.0, gradient)
        gradient -= mean_g
        tl.store(dx + place, (scale * (gradient - centred * mean_x)).to(dx.dtype.element_ty), mask=mask)
        if z_mean is not None:
            centred = tl.load(z + place, mask=mask, other=0).to(tl.float32) - z_centre
            of_z = z_inverse * z_slope * (gradient - centred * mean_z)
            tl.store(dz + place, of_z.to(dz.dtype.element_ty), mask=mask)
        place += stride * ROWS * num_channels


DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# The size of a tile. Its rows give a thread 32 values of one map, or 16 of several: more would take registers
# from other programs.
CHANNELS = 64
MOMENTS_ROWS, ROWS = 64, 32
# Warps of a multiprocessor. In passes that leave sums all of them run at once, and the last one adds the sums
# up. Passes that only write maps have more, so that none waits long for the slowest.
SUMS_WARPS, MAPS_WARPS = 16, 64
_H200 = 132  # its multiprocessors


@cache
def num_multiprocessors(device: torch.device) -> int:
    """Return a GPU's number of multiprocessors; an H200's for the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else _H200


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up, ten times as fast on the host as triton.cdiv."""
    return -(-a // b)


class Norm(NamedTuple):
    """The parts of a BatchNorm without a gradient.

    Attributes:
        eps: Added to the variance.
        momentum: The step of the running statistics.
        running_mean: float32 [C], or None if the running statistics stay.
        running_var: float32 [C], or None if the running statistics stay.
        num_batches: int64, or None if the running statistics stay.
        group: The ranks that share statistics, or None for each rank its own.
    """

    eps: float
    momentum: float = 0.0
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    num_batches: Tensor | None = None
    group: dist.ProcessGroup | None = None


class Operand(NamedTuple):
    """A map to normalise.

    Attributes:
        x: The map.
        weight: float32 [C].
        bias: float32 [C].
        norm: The rest of its BatchNorm.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    norm: Norm


def batch_norm(
    of: Operand, z: Tensor | Operand | None = None, *, relu: bool = False, fork: bool = False,
    pool: Windows | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Return relu(n(x) + z), relu(n(x) + n(z)), relu(n(x)) or its max pool, or these without the ReLU.

    The result is deterministic, and nothing waits for the device. x and z are [B, C, H, W], channels-last,
    float16, bfloat16 or float32. x has more than one value per channel, or with a group at least one on each
    rank. `pool` are the windows of a max pool where z is None. With `fork` the result is returned twice, for
    two users whose gradients are added where they are read.
    """
    z_arguments: tuple[Any, ...] = (z, None, None, of.norm, None)
    if isinstance(z, Operand):
        z_arguments = (z.x, z.weight, z.bias, of.norm, z.norm)
    result: Tensor | tuple[Tensor, Tensor] = _BatchNorm.apply(
        of.x, of.weight, of.bias, *z_arguments, relu, fork, pool
    )
    return result


def max_pool(x: Tensor, windows: Windows, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """Return the max pool of relu(x + bias), without a gradient.

    `x` is [B, C, H, W], channels-last, float16, bfloat16 or float32, with at least one window; the result has
    its dtype. `bias` is [C].
    """
    x = x.detach().contiguous(memory_format=torch.channels_last)
    y = windows.pooled(x)
    with torch.cuda.device_of(x):
        _pool(x, y, None, windows, (None, None, None, bias, 0.0), relu)
    return y


def _pool(
    x: Tensor, y: Tensor, places: Tensor | None, windows: Windows, affine: tuple[Any, ...], relu: bool
) -> None:
    """Run `pool_pass`; `affine` is its mean, var, weight, bias and eps."""
    *parameters, eps = affine
    division = _Division(y, ROWS, leaves_sums=False, has_more=True)
    pool_pass[division.grid](
        x, y, places, *parameters, *division.sizes, eps, *x.shape[2:], *y.shape[2:],
        RELU=relu, WINDOWS=sum(windows, ()), **division.constants,
    )  # fmt: skip


class _Division:
    """A division of a map among programs, with `stride` programs per tile of columns."""

    def __init__(self, x: Tensor, rows: int, leaves_sums: bool, has_more: bool = False):
        self.num_channels = x.shape[1]
        self.num_rows = x.numel() // self.num_channels
        self.num_tiles = ceil_div(self.num_channels, CHANNELS)
        # Unaligned rows are read value by value, and their addresses take registers, as do the sums of two
        # maps and the windows of a pool (`has_more`). Triton knows whether 16 divides an integer.
        are_aligned = self.num_channels % 16 == 0
        num_warps = 8 if has_more or not are_aligned else 4
        multiprocessors = num_multiprocessors(x.device)
        num_programs = (SUMS_WARPS if leaves_sums else MAPS_WARPS) * multiprocessors // num_warps
        # Rounded down, because programs that run after all others would double the time. An H200 has half a
        # program more in a few maps, and keeps the bits of its sums.
        share = ceil_div(num_programs, self.num_tiles)
        if multiprocessors != _H200:
            share = max(1, num_programs // self.num_tiles)
        self.stride = min(ceil_div(self.num_rows, rows), share)
        self.grid = (self.stride * self.num_tiles,)
        self.sizes = (self.num_rows, self.num_channels, self.stride)
        self.constants = {"ROWS": rows, "CHANNELS": CHANNELS, "num_warps": num_warps}
        if leaves_sums and are_aligned:
            self.constants["maxnreg"] = 128  # lets 16 warps run at once
        # With halves, a warp has four rows side by side.
        self.group = max(rows // (4 * num_warps), 1)

    def parts(self, x: Tensor) -> Tensor:
        """Allocate memory for three sums per channel from each program."""
        return torch.empty((self.stride, 3, self.num_channels), device=x.device)


class _BatchNorm(Function):
    @staticmethod
    @override
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, z: Tensor | None, z_weight: Tensor | None,
        z_bias: Tensor | None, norm: Norm, z_norm: Norm | None, relu: bool, fork: bool, pool: Windows | None,
    ) -> Any:  # fmt: skip
        maps = [x] if z is None else [x, z]
        assert all(each.dtype in DTYPES and each.dtype == x.dtype and each.shape == x.shape for each in maps)
        assert all(
            each.dtype == torch.float32 for each in (weight, bias, z_weight, z_bias) if each is not None
        )
        maps = [each.contiguous(memory_format=torch.channels_last) for each in maps]
        x, z = maps[0], maps[1] if len(maps) == 2 else None
        division = _Division(x, ROWS, leaves_sums=False)
        assert division.num_rows >= (2 if norm.group is None else 1), x.shape
        arrived = torch.zeros(division.num_tiles, dtype=torch.int32, device=x.device)
        y = torch.empty_like(x) if pool is None else pool.pooled(x)
        bits = places = None
        if any(ctx.needs_input_grad):
            eights = ceil_div(division.num_channels, 8)
            if relu and z is not None:
                bits = torch.empty((division.num_rows, eights), dtype=torch.uint8, device=x.device)
            if pool is not None:
                assert z is None
                size = (y.numel() // division.num_channels, eights)
                places = torch.empty(size, dtype=torch.int32, device=x.device)
        with torch.cuda.device_of(x):
            mean, var, total = _moments(x, norm, arrived)
            z_mean = z_var = None
            if z is not None and z_norm is not None:
                z_mean, z_var, _ = _moments(z, z_norm, arrived)
            if pool is not None:
                _pool(x, y, places, pool, (mean, var, weight, bias, norm.eps), relu)
            else:
                normalise_pass[division.grid](
                    x, z, y, bits, mean, var, weight, bias, z_mean, z_var, z_weight, z_bias, *division.sizes,
                    norm.eps, z_norm.eps if z_norm else 0.0, RELU=relu, **division.constants,
                )  # fmt: skip
        z_again = z if z_norm else None
        ctx.save_for_backward(
            x, z_again, bits, places, weight, bias, z_weight, mean, var, z_mean, z_var, arrived, total
        )
        ctx.norm, ctx.z_norm, ctx.relu, ctx.adds, ctx.pool = norm, z_norm, relu, z is not None, pool
        ctx.set_materialize_grads(False)
        return (y, y.detach()) if fork else y

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        incoming = [
            each.contiguous(memory_format=torch.channels_last) for each in gradients if each is not None
        ]
        if not incoming:
            return (None,) * 11
        dy, dy_2 = incoming if len(incoming) == 2 else (incoming[0], None)
        x, z, bits, places, weight, bias, z_weight, mean, var, z_mean, z_var, arrived, total = (
            ctx.saved_tensors
        )
        eps = (ctx.norm.eps, ctx.z_norm.eps if ctx.z_norm else 0.0)
        # The places of a pool tell what the ReLU cut.
        relu, pooled = ctx.relu and places is None, {}
        if places is not None:
            sizes = dict(zip(SIZES, (*x.shape[2:], *dy.shape[2:]), strict=True))
            pooled = {"places": places, "WINDOWS": sum(ctx.pool, ()), **sizes}
        # g is read again or is z's gradient, and differs from dy.
        g = None
        if places is None and (dy_2 is not None or (relu and ctx.adds)):
            g = torch.empty_like(x)
        with torch.cuda.device_of(x):
            has_more = ctx.z_norm is not None or ctx.pool is not None
            # In float32, the windows of two gradients take too many registers for a whole tile.
            rows = ROWS // 2 if ctx.pool is not None and x.dtype == torch.float32 else ROWS
            division = _Division(x, rows, leaves_sums=True, has_more=has_more)
            sums = mean.new_empty((3 if ctx.z_norm else 2, division.num_channels))
            sums_pass[division.grid](
                dy, dy_2, x, z, bits, g, division.parts(x), arrived, sums,
                mean, var, weight, bias, z_mean, z_var,
                *division.sizes, *eps, RELU=relu, GROUP=division.group, **division.constants, **pooled,
            )  # fmt: skip
            dz = g
            if ctx.adds and g is None:
                dz = torch.empty_like(x) if ctx.z_norm else dy
            global_sums, share = sums, 1 / division.num_rows
            if ctx.norm.group is not None:
                global_sums, share = sums.clone(), 1.0
                dist.all_reduce(global_sums, group=ctx.norm.group)
                global_sums /= total
            dx = torch.empty_like(x)
            division = _Division(x, ROWS, leaves_sums=False, has_more=ctx.pool is not None)
            gradient_pass[division.grid](
                dy if g is None else g, x, z, dx, dz if ctx.z_norm else None, global_sums,
                mean, var, weight, bias, z_mean, z_var, z_weight,
                *division.sizes, share, *eps, RELU=relu and g is None, **division.constants,
                **(pooled and {"dy_2": dy_2, **pooled}),
            )  # fmt: skip
        # A parameter may keep its gradient tensor, so two parameters must not share one.
        z_gradients = (sums[2], sums[0].clone()) if ctx.z_norm else (None, None)
        return dx, sums[1], sums[0], dz if ctx.adds else None, *z_gradients, *(None,) * 5


def _moments(x: Tensor, norm: Norm, arrived: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the mean, the variance and, for a group, its number of rows; update the running statistics."""
    division = _Division(x, MOMENTS_ROWS, leaves_sums=True)
    mean, var = torch.empty((2, division.num_channels), device=x.device)
    running = (norm.running_mean, norm.running_var, norm.num_batches) if norm.group is None else (None,) * 3
    moments_pass[division.grid](
        x, division.parts(x), arrived, mean, var, *running, *division.sizes, norm.momentum,
        GROUP=division.group, **division.constants,
    )  # fmt: skip
    return (mean, var, None) if norm.group is None else _of_group(mean, var, division.num_rows, norm)


def _of_group(mean: Tensor, var: Tensor, num_rows: int, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    """Combine the ranks' moments, as `_moments`."""
    moments = torch.cat((mean, var, mean.new_full((1,), num_rows)))
    moments_of_ranks = [torch.empty_like(moments) for _ in range(dist.get_world_size(norm.group))]
    dist.all_gather(moments_of_ranks, moments, group=norm.group)
    means, variances, counts = torch.stack(moments_of_ranks).split((len(mean), len(var), 1), dim=1)
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    var = ((variances + (means - mean).square()) * counts).sum(0) / total
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches is not None:
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var * (total / (total - 1)), norm.momentum)
        norm.num_batches.add_(1)
    return mean, var, total
