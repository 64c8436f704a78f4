"""LARS in two passes over weights, gradients and momenta of many tensors, 28 bytes a value.

A pass is one launch for all tensors. Each of its programs has BLOCK values of one tensor, whose address it
reads from a table on the device. Gradients lie elsewhere in each step, and a captured step may not copy from
the host. So the addresses come there as arguments of a launch.

The sums of a tensor's programs are added in a fixed order, so that the bits are always the same.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

# mypy: disable-error-code="no-untyped-def"

BLOCK = 4096  # 16 values per thread, of 8 warps; no measurement of others is kept
NUM_ADDRESSES = 64  # of a launch: 512 of the 4,096 bytes of arguments that any CUDA takes


@triton.jit(do_not_specialize=["addresses"])
def addresses_pass(table, addresses, NUM: tl.constexpr):
    """Write a tuple of int64 addresses into `table`."""
    for i in tl.static_range(NUM):
        tl.store(table + i, addresses[i])


@triton.jit
def tensor_at(table, number, ALIGNED: tl.constexpr):
    """Return the pointer to a float32 tensor of the table."""
    there = tl.load(table + number).to(tl.pointer_type(tl.float32))
    return tl.multiple_of(there, 16) if ALIGNED else there


@triton.jit
def values_at(there, mask):
    """Load values, all of them if `mask` is None: of a mask, only single values are loaded at a time."""
    return tl.load(there) if mask is None else tl.load(there, mask=mask, other=0.0)


@triton.jit
def gradient_at(there, mask, w, scale, weight_decay):
    """Return the unscaled gradients, with the decay of weights `w`."""
    g = values_at(there, mask)
    if scale is not None:
        g *= tl.div_rn(1.0, tl.load(scale))
    return g + weight_decay * w


@triton.jit
def part_of_program(owners, firsts, sizes, BLOCK: tl.constexpr):
    """Return this program's tensor, its first value in it, and how many values are left from there on."""
    number = tl.load(owners + tl.program_id(0))
    first = (tl.program_id(0) - tl.load(firsts + number)).to(tl.int64) * BLOCK
    return number, first, tl.load(sizes + number) - first


@triton.jit
def squares(weights, gradients, mask, scale, weight_decay, sums):
    """Store the sums of the squares of a program's weights and gradients."""
    w = values_at(weights, mask)
    g = gradient_at(gradients, mask, w, scale, weight_decay)
    tl.store(sums, tl.sum(w * w, 0))
    tl.store(sums + 1, tl.sum(g * g, 0))


@triton.jit
def squares_pass(
    table, owners, firsts, sizes, sums, scale, num_tensors, weight_decay, ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum the squares of each program's weights and gradients into `sums`, float32 [programs, 2]."""
    number, first, left = part_of_program(owners, firsts, sizes, BLOCK)
    offset = tl.arange(0, BLOCK)
    weights = tensor_at(table, number, ALIGNED) + first + offset
    gradients = tensor_at(table, num_tensors + number, ALIGNED) + first + offset
    sums += 2 * tl.program_id(0)
    if left >= BLOCK:
        squares(weights, gradients, None, scale, weight_decay, sums)
    else:
        squares(weights, gradients, offset < left, scale, weight_decay, sums)


@triton.jit
def rates_pass(sums, firsts, lr, rates, eeta, BLOCK: tl.constexpr):
    """Compute the rate of each tensor, `rates` float32 [tensors]: its trust times `lr`."""
    number, lane = tl.program_id(0), tl.arange(0, BLOCK)
    weights, gradients = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    end = tl.load(firsts + number + 1)
    for first in range(tl.load(firsts + number), end, BLOCK):
        mask = first + lane < end
        weights += tl.load(sums + 2 * (first + lane), mask=mask, other=0.0)
        gradients += tl.load(sums + 2 * (first + lane) + 1, mask=mask, other=0.0)
    w, g = tl.sqrt_rn(tl.sum(weights, 0)), tl.sqrt_rn(tl.sum(gradients, 0))
    trust = tl.where((w > 0) & (g > 0), tl.div_rn(eeta * w, tl.where(g > 0, g, 1.0)), 1.0)
    tl.store(rates + number, tl.load(lr) * trust)


@triton.jit
def move(weights, gradients, momenta, mask, scale, weight_decay, momentum, rate):
    """Update a program's momenta and weights."""
    w = values_at(weights, mask)
    g = gradient_at(gradients, mask, w, scale, weight_decay)
    v = values_at(momenta, mask) * momentum + g * rate
    tl.store(momenta, v, mask=mask)
    tl.store(weights, w - v, mask=mask)


@triton.jit
def update_pass(
    table, owners, firsts, sizes, rates, lr, scale, found_inf, num_tensors, weight_decay, momentum,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update momenta and weights, unless `found_inf` is not 0. `rates` is None if all tensors have `lr`."""
    if found_inf is not None:  # noqa: SIM102  (this is known when it is compiled)
        if tl.load(found_inf) != 0:
            return
    number, first, left = part_of_program(owners, firsts, sizes, BLOCK)
    offset = tl.arange(0, BLOCK)
    weights = tensor_at(table, number, ALIGNED) + first + offset
    gradients = tensor_at(table, num_tensors + number, ALIGNED) + first + offset
    momenta = tensor_at(table, 2 * num_tensors + number, ALIGNED) + first + offset
    rate = tl.load(lr) if rates is None else tl.load(rates + number)
    if left >= BLOCK:
        move(weights, gradients, momenta, None, scale, weight_decay, momentum, rate)
    else:
        move(weights, gradients, momenta, offset < left, scale, weight_decay, momentum, rate)


class Division(NamedTuple):
    """A division of tensors among programs, on the host.

    Attributes:
        owners: The tensor of each program, int32.
        firsts: The first program of each tensor, and the number of programs, int32 [tensors + 1].
        sizes: The values of each tensor, int64.
    """

    owners: Tensor
    firsts: Tensor
    sizes: Tensor


def divided(sizes: Sequence[int]) -> Division:
    """Divide tensors of so many values among programs."""
    nums = np.array(sizes, np.int64)
    of_tensors = -(-nums // BLOCK)
    firsts = np.concatenate([[0], of_tensors.cumsum()])
    owners = np.arange(len(sizes)).repeat(of_tensors)
    return Division(*map(torch.from_numpy, (owners.astype(np.int32), firsts.astype(np.int32), nums)))


def _table(*lists: Sequence[Tensor]) -> tuple[Tensor, bool]:
    """Return a table of the lists' addresses, int64, and whether 16 divides all of them."""
    addresses = [tensor.data_ptr() for tensors in lists for tensor in tensors]
    num = -(-len(addresses) // NUM_ADDRESSES) * NUM_ADDRESSES
    table = torch.empty(num, dtype=torch.int64, device=lists[0][0].device)
    padded = addresses + addresses[:1] * (num - len(addresses))
    for first in range(0, num, NUM_ADDRESSES):
        part = tuple(padded[first : first + NUM_ADDRESSES])
        addresses_pass[(1,)](table[first:], part, NUM=NUM_ADDRESSES, num_warps=1)
    return table, all(address % 16 == 0 for address in addresses)


@torch.library.custom_op("fastpsl::lars_rates", mutates_args=())
def rates_of(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], owners: Tensor, firsts: Tensor, sizes: Tensor,
    lr: Tensor, scale: Tensor | None, weight_decay: float, eeta: float,
) -> Tensor:  # fmt: skip
    """Return the rate of each tensor, float32 [tensors]; all tensors are dense, a pair in one order."""
    sums = torch.empty((max(len(owners), 1), 2), device=lr.device)
    rates = torch.empty(len(weights), device=lr.device)
    with torch.cuda.device_of(lr):
        table, aligned = _table(weights, gradients)
        if len(owners):
            squares_pass[(len(owners),)](
                table, owners, firsts, sizes, sums, scale, len(weights), weight_decay, ALIGNED=aligned,
                BLOCK=BLOCK, num_warps=8,
            )  # fmt: skip
        rates_pass[(len(weights),)](sums, firsts, lr, rates, eeta, BLOCK=1024)
    return rates


@torch.library.custom_op("fastpsl::lars_update", mutates_args=("weights", "momenta"))
def update(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], momenta: Sequence[Tensor], owners: Tensor,
    firsts: Tensor, sizes: Tensor, rates: Tensor | None, lr: Tensor, scale: Tensor | None,
    found_inf: Tensor | None, weight_decay: float, momentum: float,
) -> None:  # fmt: skip
    """Update momenta and weights in place, by `rates`, or by `lr` for all, unless `found_inf` is not 0."""
    if not len(owners):
        return
    with torch.cuda.device_of(lr):
        table, aligned = _table(weights, gradients, momenta)
        update_pass[(len(owners),)](
            table, owners, firsts, sizes, rates, lr, scale, found_inf, len(weights), weight_decay, momentum,
            ALIGNED=aligned, BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip


@rates_of.register_fake
def _(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], owners: Tensor, firsts: Tensor, sizes: Tensor,
    lr: Tensor, scale: Tensor | None, weight_decay: float, eeta: float,
) -> Tensor:  # fmt: skip
    return lr.new_empty(len(weights))


@update.register_fake
def _(*_: object) -> None:
    pass
