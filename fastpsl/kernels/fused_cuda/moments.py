"""A channel's mean and variance over all positions of a batch, and what all kernels of BatchNorm share: how programs divide a map.

A map [B, C, H, W] in channels-last memory is a matrix of B * H * W rows and C columns, cut into tiles of ROWS x CHANNELS. A program has the
columns of one tile, and of its rows every `stride`-th tile: so all programs together go through the map from one end to the other, and
the next pass, which goes the other way, finds in the L2 cache what this one has read last. Columns side by side are a thread's: 16 bytes a load of halves.

Means and squared deviations are combined by Chan's formula: of GROUP rows that a thread has at once with those that it had before, then of threads,
then of programs. So nothing is the difference of two large sums, and errors are those of some hundreds of additions and not of
three million. Programs are combined in their order by the one that comes last, which an integer counts: one launch, and the same bits each time.
"""

import triton
import triton.language as tl

# mypy: disable-error-code="no-untyped-def"


@triton.jit
def part_of_program(num_channels, CHANNELS: tl.constexpr):
    """(the columns of this program, which of them there are, their tile's number, the number of the first tile of rows)"""
    num_tiles = tl.cdiv(num_channels, CHANNELS)
    tile = tl.program_id(0) % num_tiles
    channel = tile * CHANNELS + tl.arange(0, CHANNELS)
    return channel, channel < num_channels, tile, tl.program_id(0) // num_tiles


@triton.jit
def is_last(arrived, num_programs):
    """Whether this program is the last of `num_programs` that comes here, and so sees what the others have stored before. `arrived`
    points to a zero, and does so again when the last has come.
    """
    tl.debug_barrier()
    last = tl.atomic_add(arrived, 1, sem="acq_rel") == num_programs - 1
    if last:
        tl.store(arrived, 0)
    return last


@triton.jit
def groups(values, GROUP: tl.constexpr):
    """[ROWS, CHANNELS] → [GROUP, ROWS / GROUP, CHANNELS]: what lies along the first dimension is one thread's."""
    return tl.reshape(values, (GROUP, values.shape[0] // GROUP, values.shape[1]))


@triton.jit
def combined(means, squares, counts):
    """(mean, squared deviations from it, count) of [N, CHANNELS] parts together, which have these; each [CHANNELS]."""
    count = tl.sum(counts, 0)
    mean = tl.sum(means * counts, 0) / tl.maximum(count, 1.0)
    difference = means - mean[None, :]
    return mean, tl.sum(squares + counts * difference * difference, 0), count


@triton.jit
def combined_programs(parts, channel, is_channel, num_channels, stride, LANES: tl.constexpr):
    """The same of all programs' `parts`, LANES programs at a time: each lane adds up first what it has."""
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
    """What lies at `there` towards `value`."""
    tl.store(there, tl.load(there, mask=mask) * (1.0 - momentum) + value * momentum, mask=mask)


@triton.jit(do_not_specialize=["num_rows", "stride"])
def moments_pass(
    x, parts, arrived, mean, var, running_mean, running_var, num_batches, num_rows, num_channels, stride, momentum,
    GROUP: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """x: [num_rows, C], float16, bfloat16 or float32 → mean, var: float32 [C], var divided by num_rows.

    running_mean, running_var: float32 [C] or None, moved towards mean and the unbiased variance by `momentum`; num_batches:
    int64, one more. stride: programs for a tile of columns. parts: float32 [stride, 3, C], of no meaning to others; arrived: int32 zeros, one a
    tile of columns.
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
