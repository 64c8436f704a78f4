"""A launch for Shift or Enlarge, in bytes, before the launches of photometric.py.

This serves probes of networks with Sobel's input, and the small images of few-shot classification. The cost
is for 512 samples of 32 px, and for 256 of 84 px enlarged to 256 and cut to 224, to float16. It is counted as
in shifted.py:

    chain                                one by one              fused
    Shift, Flip, SobelXY          33 launches,   137 MB    2 launches, 6.8 MB
    Shift, Flip, Sobel            38 launches,   341 MB    4 launches, 25.7 MB
    Enlarge                       16 launches, 1,560 MB    2 launches, 160 MB
    Enlarge, SobelXY              29 launches, 3,750 MB    2 launches, 134 MB
"""

from collections.abc import Mapping, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastpsl.kernels.fused_cuda import photometric
from fastpsl.kernels.fused_cuda.shifted import part_of_sample, source_of
from fastpsl.kernels.fused_cuda.warped import INTEGERS
from fastpsl.kernels.geometry import Enlarge, Shift

# mypy: disable-error-code="no-untyped-def"

# Bytes per program, 8 per thread.
_BLOCK, _NUM_WARPS = 1024, 4


def fits(ops: Sequence[object]) -> bool:
    """Return whether `ops` are a Shift or an Enlarge, then operations that photometric.py fits."""
    return bool(ops) and isinstance(ops[0], Shift | Enlarge) and photometric.fits(ops[1:])


def _prepared_shape(op: object, shape: Sequence[int]) -> Sequence[int]:
    return (*shape[:2], op.size_px, op.size_px) if isinstance(op, Enlarge) else shape


def run(
    images: Tensor, ops: Sequence[object], draws: Sequence[Mapping[str, Tensor]], mean: Sequence[float],
    std: Sequence[float], out: Tensor,
) -> None:  # fmt: skip
    """Compute the result of `ops` into `out`, without waiting for the device; see kernels/fused.py."""
    assert fits(ops) and images.dtype == torch.uint8 and images.shape[1] == 3, (ops, images.dtype)
    op, (num_images, _, height, width) = ops[0], images.shape
    images = images.contiguous(memory_format=torch.channels_last)
    shape = _prepared_shape(op, images.shape)
    prepared = torch.empty(
        tuple(shape), dtype=torch.uint8, device=images.device, memory_format=torch.channels_last
    )
    grid = (num_images * triton.cdiv(3 * shape[2] * shape[3], _BLOCK),)
    sizes = {"HEIGHT": height, "WIDTH": width, "BLOCK": _BLOCK, "num_warps": _NUM_WARPS}
    if num_images:
        with torch.cuda.device_of(images):
            if isinstance(op, Enlarge):
                enlarge_kernel[grid](
                    images, prepared, height / op.side_px, width / op.side_px,
                    START=(op.side_px - op.size_px) // 2, SIZE=op.size_px, **sizes,
                )  # fmt: skip
            else:
                assert isinstance(op, Shift)
                shift_kernel[grid](
                    images, prepared, draws[0]["shift"].contiguous(), MAX_PX=op.max_px, **sizes
                )
    photometric.run(prepared, ops[1:], draws[1:], mean, std, out)


@triton.jit
def shift_kernel(
    images, out, shift, MAX_PX: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """Shift images, uint8 [B, H, W, 3]."""
    size: tl.constexpr = 3 * HEIGHT * WIDTH
    sample, value = part_of_sample(size, BLOCK)
    source, there = source_of(sample, value // 3, None, shift, MAX_PX, HEIGHT, WIDTH)
    found = tl.load(images + sample * size + source * 3 + value % 3, mask=there & (value < size), other=0)
    tl.store(out + sample * size + value, found, mask=value < size)


@triton.jit
def enlarge_kernel(
    images, out, step_y, step_x,
    START: tl.constexpr, SIZE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Resize images, uint8 [B, H, W, 3], to [B, SIZE, SIZE, 3] as kernels/geometry.py.

    step_y and step_x are the distances of the result's pixels in source pixels.
    """
    size: tl.constexpr = 3 * SIZE * SIZE
    sample, value = part_of_sample(size, BLOCK)
    pixel, channel = value // 3, value % 3
    y_0, y_1, below = _between(pixel // SIZE + START, step_y, HEIGHT)
    x_0, x_1, right = _between(pixel % SIZE + START, step_x, WIDTH)
    images += sample * (3 * HEIGHT * WIDTH) + channel
    inside = value < size
    a, b = _byte(images, y_0 * WIDTH + x_0, inside), _byte(images, y_0 * WIDTH + x_1, inside)
    c, d = _byte(images, y_1 * WIDTH + x_0, inside), _byte(images, y_1 * WIDTH + x_1, inside)
    high, low = a * (1.0 - right) + b * right, c * (1.0 - right) + d * right
    found = (high * (1.0 - below) + low * below + INTEGERS) - INTEGERS
    tl.store(out + sample * size + value, found.to(tl.uint8), mask=inside)


@triton.jit
def _between(number, step, length: tl.constexpr):
    """Return the two source pixels around a result's pixel along an axis, and the second one's weight."""
    at = tl.maximum((number.to(tl.float32) + 0.5) * step - 0.5, 0.0)
    first = tl.minimum(at.to(tl.int32), length - 1)
    return first, tl.minimum(first + 1, length - 1), at - first.to(tl.float32)


@triton.jit
def _byte(images, pixel, inside):
    return tl.load(images + pixel * 3, mask=inside, other=0).to(tl.float32)
