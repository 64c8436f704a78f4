"""A channel's mean and variance over a batch, and the division of a map that BatchNorm's kernels share.

A map [B, C, H, W] in channels-last memory is a matrix of B * H * W rows and C columns. It is cut into tiles
of ROWS x CHANNELS. A program has the columns of one tile and every `stride`-th tile of rows. So all programs
together go through the map from end to end. The next pass goes in the other direction, and finds the last
part in the L2 cache. A thread has columns side by side: 16 bytes per load of halves.

Means and squared deviations are combined by Chan's formula: first GROUP rows of a thread with its rows
before, then threads, then programs. So nothing is the difference of two large sums, and the errors are those
of some hundreds of additions instead of three million. The last program to arrive, which an integer counts,
combines the programs in their order. This takes one launch and always gives the same bits.
"""

import triton
import triton.language as tl

# mypy: disable-error-code="no-untyped-def"


@triton.jit
def part_of_program(num_channels, CHANNELS: tl.constexpr):
    """Return this program's columns, which of them exist, its tile of columns and its first tile of rows."""
    num_tiles = tl.cdiv(num_channels, CHANNELS)
    tile = tl.program_id(0) % num_tiles
    channel = tile * CHANNELS + tl.arange(0, CHANNELS)
    return channel, channel < num_channels, tile, tl.program_id(0) // num_tiles


@triton.jit
def is_last(arrived, num_programs):
    """Return whether this program is the last of `num_programs` to arrive.

    The last one sees what the others have stored. `arrived` points to a zero, and again after the last has
    arrived.
    """
    tl.debug_barrier()
    last = tl.atomic_add(arrived, 1, sem="acq_rel") == num_programs - 1
    if last:
        tl.store(arrived, 0)
    return last


@triton.jit
def groups(values, GROUP: tl.constexpr):
    """Reshape [ROWS, CHANNELS] to [GROUP, ROWS / GROUP, CHANNELS]; a thread has the first axis."""
    return tl.reshape(values, (GROUP, values.shape[0] // GROUP, values.shape[1]))


@triton.jit
def combined(means, squares, counts):
    """Combine parts [N, CHANNELS] into their mean, squared deviations from it and count, each [CHANNELS]."""
    count = tl.sum(counts, 0)
    mean = tl.sum(means * counts, 0) / tl.maximum(count, 1.0)
    difference = means - mean[None, :]
    return mean, tl.sum(squares + counts * difference * difference, 0), count


@triton.jit
def combined_programs(parts, channel, is_channel, num_channels, stride, LANES: tl.constexpr):
    """Combine all programs' `parts` as `combined` does, LANES of them at a time.

    Each lane first adds up its own.
    """
    lane = tl.arange(0, LANES)[:, None]
    means = tl.zeros([LANES, channel.shape[0]], tl.float32)
    squares = tl.zeros([LANES, channel.shape[0]], tl.float32)
    counts = tl.zeros([LANES, channel.shape[0]], tl.float32)
    for first in range(0, stride, LANES):
        mask = (first + lane < stride) & is_channel[None, :]
        part = parts + (first + lane) * 3 * num_channels + channel[None, :]
        count = tl.load(part + 2 * num_channels, mask=mask, other=0, cache_modifier=".cg")
        difference = tl.load(part, mask=mask, other=0, cache_modifier=".cg") - means
        share = count / tl.maximum(counts + count, 1.0)
        means += difference * share
        squares += tl.load(part + num_channels, mask=mask, other=0, cache_modifier=".cg")
        squares += difference * difference * share * counts
        counts += count
    return combined(means, squares, counts)


@triton.jit
def move(there, value, momentum, mask):
    """Move the values at `there` towards `value`."""
    tl.store(there, tl.load(there, mask=mask) * (1.0 - momentum) + value * momentum, mask=mask)


@triton.jit(do_not_specialize=["num_rows", "stride"])
def moments_pass(
    x, parts, arrived, mean, var, running_mean, running_var, num_batches,
    num_rows, num_channels, stride, momentum, GROUP: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Compute mean and var, float32 [C], of x, [num_rows, C], float16, bfloat16 or float32.

    `var` is divided by num_rows. `running_mean` and `running_var`, float32 [C] or None, move towards the mean
    and the unbiased variance by `momentum`; `num_batches`, int64, grows by one. `stride` is the number of
    programs per tile of columns. `parts` is scratch memory, float32 [stride, 3, C]. `arrived` has an int32
    zero per tile of columns.
    """
    channel, is_channel, tile, number = part_of_program(num_channels, CHANNELS)
    LANES: tl.constexpr = ROWS // GROUP
    row, lane = tl.arange(0, ROWS)[:, None], tl.arange(0, LANES)[:, None]
    row_of_group = tl.arange(0, GROUP)[:, None, None] * LANES + lane[None, :, :]
    there = x + number.to(tl.int64) * ROWS * num_channels + row * num_channels + channel[None, :]
    means = tl.zeros([LANES, CHANNELS], tl.float32)
    squares = tl.zeros([LANES, CHANNELS], tl.float32)
    counts = tl.zeros([LANES, 1], tl.float32)
    for first in range(number * ROWS, num_rows, stride * ROWS):
        left = num_rows - first
        values = tl.load(there, mask=(row < left) & is_channel[None, :], other=0).to(tl.float32)
        values = groups(values, GROUP)
        count = tl.minimum(tl.maximum(left - lane + LANES - 1, 0) // LANES, GROUP).to(tl.float32)
        mean_here = tl.sum(values, 0) * (1.0 / tl.maximum(count, 1.0))
        deviations = tl.where(row_of_group < left, values - mean_here[None, :, :], 0.0)
        difference = mean_here - means
        share = count / tl.maximum(counts + count, 1.0)
        means += difference * share
        squares += tl.sum(deviations * deviations, 0) + difference * difference * (share * counts)
        counts += count
        there += stride * ROWS * num_channels

    mean_here, squares_here, count_here = combined(means, squares, tl.broadcast_to(counts, (LANES, CHANNELS)))
    part = parts + number * 3 * num_channels + channel
    tl.store(part, mean_here, mask=is_channel)
    tl.store(part + num_channels, squares_here, mask=is_channel)
    tl.store(part + 2 * num_channels, count_here, mask=is_channel)
    if is_last(arrived + tile, stride):
        mean_here, squares_here, _ = combined_programs(
            parts, channel, is_channel, num_channels, stride, LANES
        )
        var_here = squares_here / num_rows.to(tl.float32)
        tl.store(mean + channel, mean_here, mask=is_channel)
        tl.store(var + channel, var_here, mask=is_channel)
        if running_mean is not None:
            move(running_mean + channel, mean_here, momentum, is_channel)
            unbiased = squares_here / (num_rows - 1).to(tl.float32)
            move(running_var + channel, unbiased, momentum, is_channel)
            if tile == 0:
                tl.store(num_batches, tl.load(num_batches) + 1)
