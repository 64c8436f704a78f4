"""Views of flip, colour distortion, grey, lightness, blur and Sobel, normalised, in at most three passes over memory.

For 256 samples of 224 px (12.8 Mpx) as SimCLR's T3 draws them, with the half results of a GPU of 4.25 TB/s and 132 SMs:

    pass            samples            bytes moved                                ms by bytes    ms by arithmetic
    mean            80 %               31 MB read                                 0.007          see docs
"""

from collections.abc import Mapping, Sequence

import torch
import triton
from torch import Tensor

from fastpsl.kernels.blur import GaussianBlur
from fastpsl.kernels.colour import ColourDistortion
from fastpsl.kernels.flip import Flip
from fastpsl.kernels.fused.colour import colour_pass, mean_pass
from fastpsl.kernels.fused.neighbourhood import neighbourhood_pass, num_chunks
from fastpsl.kernels.grey import Grey
from fastpsl.kernels.lightness import Lightness
from fastpsl.kernels.normalise import check_mean_and_std
from fastpsl.kernels.sobel import Sobel

ORDER = (Flip, ColourDistortion, Grey, Lightness, GaussianBlur, Sobel)
_TILE = 32
_BLOCK = 1024
_STEPS = 4
_NUM_WARPS = 4


def fits(ops: Sequence[object]) -> bool:
    """Whether `ops` are some of ORDER, in this order; none at all is normalisation alone."""
    kinds = [type(op) for op in ops]
    return kinds == [kind for kind in ORDER if kind in kinds]


def out_shape(ops: Sequence[object], shape: Sequence[int]) -> tuple[int, int, int, int]:
    """The result's shape for images [B, 3, H, W]; ValueError where they are too small for the blur."""
    assert fits(ops), ops
    batch, channels, height, width = shape
    for op in ops:
        if isinstance(op, GaussianBlur):
            op.check_size(height, width)
        elif isinstance(op, Lightness):
            channels = 1
    return batch, channels, height, width


def run(
    images: Tensor,
    ops: Sequence[object],
    draws: Sequence[Mapping[str, Tensor]],
    mean: Sequence[float],
    std: Sequence[float],
    out: Tensor,
) -> None:
    """uint8 [B, 3, H, W] → `out`, float16, bfloat16 or float32 of `out_shape`, channels-last: what ViewSpec.apply gives.

    draws: aligned with ops, on the device. Computed in float32; what a blur or Sobel reads is rounded to half where
    the result is a half type. Nothing waits for the device.
    """
    shape = out_shape(ops, images.shape)
    batch, channels, height, width = shape
    check_mean_and_std(mean, std, channels)
    assert images.dtype == torch.uint8 and out.shape == shape, (images.dtype, out.shape, shape)
    assert out.is_contiguous(memory_format=torch.channels_last), out.stride()
    if not out.numel():
        return
    images = images.contiguous(memory_format=torch.channels_last)
    op_of = {type(op): op for op in ops}
    drawn = {
        (type(op), name): values.contiguous()
        for op, draw in zip(ops, draws, strict=True)
        for name, values in draw.items()
    }
    colour = op_of.get(ColourDistortion)
    hue = isinstance(colour, ColourDistortion) and colour.hue > 0
    apply = drawn.get((ColourDistortion, "apply"))
    order = drawn.get((ColourDistortion, "order"))
    factors = drawn.get((ColourDistortion, "factors"))
    blur = drawn.get((GaussianBlur, "apply"))
    sobel = drawn.get((Sobel, "apply"))
    scale = [1 / s for s in std] + [0.0] * (3 - channels)
    shift = [-m / s for m, s in zip(mean, std, strict=True)] + [0.0] * (3 - channels)
    factor_and_shift = (*scale, *shift)

    num_sums = triton.cdiv(height * width, _BLOCK * _STEPS)
    sums = planes = None
    pitch = -(-width // 16) * 16
    with torch.cuda.device_of(images):
        if isinstance(colour, ColourDistortion) and colour.contrast > 0:
            sums = torch.empty((batch, num_sums), device=images.device)
            mean_pass[(num_sums * batch,)](
                images, apply, order, factors, sums, height * width, num_sums,
                HUE=hue, BLOCK=_BLOCK, STEPS=_STEPS, num_warps=_NUM_WARPS,
            )  # fmt: skip
        if blur is not None or sobel is not None:
            kind = torch.float32 if out.dtype == torch.float32 else torch.float16
            planes = torch.empty((batch, channels, height, pitch), dtype=kind, device=images.device)
        tiles = triton.cdiv(width, _TILE) * triton.cdiv(height, _TILE) * batch
        colour_pass[(tiles,)](
            images, out, planes, drawn.get((Flip, "flip")), apply, order, factors, sums, drawn.get((Grey, "apply")),
            blur, sobel, height, width, pitch, num_sums, *factor_and_shift,
            HUE=hue, LIGHTNESS=channels == 1, MAX_SUMS=triton.next_power_of_2(num_sums), TILE=_TILE, num_warps=_NUM_WARPS,
        )  # fmt: skip
        if planes is not None:
            blur_op = op_of.get(GaussianBlur)
            half = blur_op.kernel_px // 2 if isinstance(blur_op, GaussianBlur) else 0
            neighbourhood_pass[(tiles,)](
                planes, out, blur, drawn.get((GaussianBlur, "sigma")), sobel, height, width, pitch, *factor_and_shift,
                HALF=half, NUM_TAPS=triton.next_power_of_2(2 * half + 1), CHANNELS=channels,
                NUM_CHUNKS=num_chunks(half), PRECISION="ieee", num_warps=_NUM_WARPS,
            )  # fmt: skip
