"""BatchNorm's passes after the moments, one forward and two backward, with the sum, the ReLU and the pool.

They compute y = relu(n(x) + n(z)), relu(n(x) + z) or relu(n(x)), or these without the ReLU. Here n(x) = (x -
mean) / sqrt(var + eps) * weight + bias. Maps are matrices as in moments.py, of one dtype. Arithmetic is
float32; y and z's gradient are rounded once.

The backward pass must know where the ReLU was 0. For a single map this follows from x, by the arithmetic of
the forward pass. With a sum, one bit per value stores it, which costs 1/16 of reading y or z.

With a max pool behind, y and dy are pooled maps, and `pool_pass` takes the place of `normalise_pass`. It
leaves four bits per pooled value, the maximum's place (see pool_windows.py), which also tells what the ReLU
cut.

Forward, `moments_pass` goes from a map's beginning to its end, and `normalise_pass` back. Backward,
`sums_pass` begins where dy was written last.
"""

import triton
import triton.language as tl

from fastpsl.kernels.fused_cuda.moments import groups, is_last, part_of_program
from fastpsl.kernels.fused_cuda.pool_windows import (
    NO_PLACE,
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
            # The maximum of what the ReLU leaves is what it leaves of the maximum.
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
