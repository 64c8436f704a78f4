"""The windows of a max pool within matrices of rows and channels, as batch_norm.py has them.

A window is a position of the pooled map. WINDOWS is a constant: the height and the width of the kernel, of
the stride and of the padding, six integers. The maximum's place in its window is i * kernel width + j, in
four bits. They are NO_PLACE if no value of the window gets a gradient.

A gradient is gathered. Each value looks at all windows that contain it, at most four of those of ResNet. So
no two programs add to one value, and the result is deterministic.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# mypy: disable-error-code="no-untyped-def"

MAX_PLACES = 15  # of four bits' 16 numbers one says that there is none
NO_PLACE = tl.constexpr(15)


class Windows(NamedTuple):
    """The windows of a max pool: heights and widths. Padding is at most half of a window.

    Attributes:
        kernel: The size of a window, of at most MAX_PLACES values.
        stride: The distance of windows.
        padding: The rows and columns on each side that no value has.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def pooled_size(self, x: Tensor) -> list[int]:
        """Return the height and width of the pooled map of x, which may not be positive."""
        sizes = zip(x.shape[2:], self.kernel, self.stride, self.padding, strict=True)
        return [(size + 2 * padding - kernel) // stride + 1 for size, kernel, stride, padding in sizes]

    def pooled(self, x: Tensor) -> Tensor:
        """Allocate the pooled map of x."""
        size = (*x.shape[:2], *self.pooled_size(x))
        return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@triton.jit
def pack(numbers, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Pack int32 [ROWS, CHANNELS], below 2^BITS, into DTYPE [ROWS, CHANNELS / 8], from the lowest bits on."""
    eights = tl.reshape(numbers, (numbers.shape[0], numbers.shape[1] // 8, 8))
    return tl.sum(eights << (BITS * tl.arange(0, 8))[None, None, :], 2).to(DTYPE)


@triton.jit
def unpack(packed, BITS: tl.constexpr):
    """Undo `pack`."""
    eights = (packed.to(tl.int32)[:, :, None] >> (BITS * tl.arange(0, 8))[None, None, :]) & (1 << BITS) - 1
    return tl.reshape(eights, (packed.shape[0], packed.shape[1] * 8))


@triton.jit
def columns_of_eights(num_channels, tile, CHANNELS: tl.constexpr):
    """Return a packed row's columns, those of this tile and a mask of the valid ones."""
    width = tl.cdiv(num_channels, 8)
    column = tile * (CHANNELS // 8) + tl.arange(0, CHANNELS // 8)
    return width, column[None, :], column[None, :] < width


@triton.jit
def position(row, height, width):
    """Return the image, the line and the column of a row of a map."""
    line = row // width
    return line // height, line % height, row % width


@triton.jit
def largest(
    x, centre, scale, offset, row, is_row, channel, is_channel, num_channels,
    height, width, pooled_height, pooled_width, WINDOWS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Return the maximum of (x - centre) * scale + offset, rounded to DTYPE, in each window, and its place.

    The first of equal values wins, and the last NaN, as in torch.
    """
    KERNEL_HEIGHT: tl.constexpr = WINDOWS[0]
    KERNEL_WIDTH: tl.constexpr = WINDOWS[1]
    image, top, left = position(row, pooled_height, pooled_width)
    top, left = top * WINDOWS[2] - WINDOWS[4], left * WINDOWS[3] - WINDOWS[5]
    best = tl.full([row.shape[0], channel.shape[0]], float("-inf"), tl.float32)
    # If nothing is larger than -inf, the first value within the map wins.
    first = tl.maximum(-top, 0) * KERNEL_WIDTH + tl.maximum(-left, 0)
    place = tl.broadcast_to(first, (row.shape[0], channel.shape[0]))
    for i in tl.static_range(KERNEL_HEIGHT):
        for j in tl.static_range(KERNEL_WIDTH):
            is_inside = is_row & (top + i >= 0) & (top + i < height) & (left + j >= 0) & (left + j < width)
            inner = (image * height + top + i) * width + left + j
            source = inner.to(tl.int64) * num_channels + channel
            value = tl.load(x + source, mask=is_inside & is_channel, other=0).to(tl.float32)
            value = ((value - centre) * scale + offset).to(DTYPE).to(tl.float32)
            wins = is_inside & ((value > best) | (value != value))  # noqa: PLR0124
            best = tl.where(wins, value, best)
            place = tl.where(wins, i * KERNEL_WIDTH + j, place)
    return best, place


@triton.jit
def from_windows(
    dy, dy_2, places, row, is_row, channel, is_channel, num_channels, tile,
    height, width, pooled_height, pooled_width, WINDOWS: tl.constexpr,
):  # fmt: skip
    """Return the sum of dy (+ dy_2), float32, of the windows in which a value is the maximum."""
    num_eights, eight, is_eight = columns_of_eights(num_channels, tile, channel.shape[1])
    image, line, column = position(row, height, width)
    line, column = line + WINDOWS[4], column + WINDOWS[5]
    gradient = tl.zeros([row.shape[0], channel.shape[0]], tl.float32)
    for above in tl.static_range((WINDOWS[0] - 1) // WINDOWS[2] + 1):
        for before in tl.static_range((WINDOWS[1] - 1) // WINDOWS[3] + 1):
            top, left = line // WINDOWS[2] - above, column // WINDOWS[3] - before
            i, j = line - top * WINDOWS[2], column - left * WINDOWS[3]
            is_inside = is_row & (i < WINDOWS[0]) & (top >= 0) & (top < pooled_height)
            is_inside &= (j < WINDOWS[1]) & (left >= 0) & (left < pooled_width)
            mask = is_inside & is_channel
            window = ((image * pooled_height + top) * pooled_width + left).to(tl.int64)
            source = window * num_channels + channel
            packed = tl.load(places + window * num_eights + eight, mask=is_inside & is_eight, other=0)
            value = tl.load(dy + source, mask=mask, other=0).to(tl.float32)
            if dy_2 is not None:
                value += tl.load(dy_2 + source, mask=mask, other=0).to(tl.float32)
            gradient += tl.where(unpack(packed, 4) == i * WINDOWS[1] + j, value, 0.0)
    return gradient
