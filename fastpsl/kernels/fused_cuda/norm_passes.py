"""BatchNorm's passes after the moments, one forward and two backward, with the sum and the ReLU.

They compute y = relu(n(x) + n(z)), relu(n(x) + z) or relu(n(x)), or these without the ReLU. Here n(x) = (x -
mean) / sqrt(var + eps) * weight + bias. Maps are matrices as in moments.py, of one dtype. Arithmetic is
float32; y and z's gradient are rounded once.

The backward pass must know where the ReLU was 0. For a single map this follows from x, by the arithmetic of
the forward pass. With a sum, one bit per value stores it, which costs 1/16 of reading y or z.

Forward, `moments_pass` goes from a map's beginning to its end, and `normalise_pass` back. Backward,
`sums_pass` begins where dy was written last.
"""

import triton
import triton.language as tl

from fastpsl.kernels.fused_cuda.moments import groups, is_last, part_of_program

# mypy: disable-error-code="no-untyped-def"


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


@triton.jit
def pack(flags, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Pack bool [ROWS, CHANNELS] into uint8 [ROWS, CHANNELS / 8], the first in the lowest bit."""
    eights = tl.reshape(flags.to(tl.int32), (ROWS, CHANNELS // 8, 8))
    return tl.sum(eights << tl.arange(0, 8)[None, None, :], 2).to(tl.uint8)


@triton.jit
def unpack(packed, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Undo `pack`."""
    eights = (packed.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(eights, (ROWS, CHANNELS)) != 0


@triton.jit
def bytes_of_row(num_channels, tile, CHANNELS: tl.constexpr):
    """Return a row's bytes of bits, the byte columns of this tile and a mask of the valid ones."""
    width = tl.cdiv(num_channels, 8)
    column = tile * (CHANNELS // 8) + tl.arange(0, CHANNELS // 8)
    return width, column[None, :], column[None, :] < width


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
        width, column, is_column = bytes_of_row(num_channels, tile, CHANNELS)
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
                tl.store(there, pack(cut, ROWS, CHANNELS), mask=is_row & is_column)
                there -= stride * ROWS * width
        tl.store(y + place, value.to(y.dtype.element_ty), mask=mask)
        place -= stride * ROWS * num_channels


@triton.jit(do_not_specialize=["num_rows", "stride"])
def sums_pass(
    dy, dy_2, x, z, bits, dz, parts, arrived, sums, mean, var, weight, bias, z_mean, z_var,
    num_rows, num_channels, stride, eps, z_eps,
    RELU: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute sums, float32 [3, C]: of g, of g * n(x) and, if z_mean is not None, of g * n(z).

    g is dy (+ dy_2) where the ReLU did not cut, and n is taken before weight and bias. `dz` is None or gets
    g. `bits` is that of `normalise_pass` or None. `parts` is scratch memory, float32 [stride, 3, C].
    `arrived` is as in `moments_pass`.
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
        width, column, is_column = bytes_of_row(num_channels, tile, CHANNELS)
        there = bits + last.to(tl.int64) * width + row * width + column
    for step in range(num_tiles):
        is_row = last - step * stride * ROWS + row < num_rows
        mask = is_row & is_channel[None, :]
        gradient = tl.load(dy + place, mask=mask, other=0).to(tl.float32)
        if dy_2 is not None:
            gradient += tl.load(dy_2 + place, mask=mask, other=0).to(tl.float32)
            gradient = gradient.to(dy.dtype.element_ty).to(tl.float32)
        centred = tl.load(x + place, mask=mask, other=0).to(tl.float32) - centre
        if RELU:
            if bits is not None:
                cut = unpack(tl.load(there, mask=is_row & is_column, other=0), ROWS, CHANNELS)
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


@triton.jit(do_not_specialize=["num_rows", "stride"])
def gradient_pass(
    g, x, z, dx, dz, sums, mean, var, weight, bias, z_mean, z_var, z_weight,
    num_rows, num_channels, stride, share, eps, z_eps,
    RELU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute dx = weight / deviation * (g - mean of g - n(x) * mean of g * n(x)), [num_rows, C].

    The means are `sums` * `share`. RELU means that g is not cut yet; the cut follows from x. `dz` is z's
    gradient, by the same formula, if z_mean is not None.
    """
    channel, is_channel, _, number = part_of_program(num_channels, CHANNELS)
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
