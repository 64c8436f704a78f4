"""Normalisation: (x - mean) / std per channel, in the network's dtype, channels-last."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def to_float32(images: Tensor) -> Tensor:
    """Return float32 in [0, 1] from uint8 in [0, 255] or floating in [0, 1]; float32 is not copied."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32) / 255
    return images.to(torch.float32)


def result_dtype(images: Tensor) -> torch.dtype:
    """Return float32 for uint8 images, else the images' own dtype."""
    return torch.float32 if images.dtype == torch.uint8 else images.dtype


def finish(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `images` as `dtype` in channels-last memory, without a copy if nothing changes."""
    return images.to(dtype).contiguous(memory_format=torch.channels_last)


def per_sample(values: Tensor) -> Tensor:
    """Return `values` [B] as [B, 1, 1, 1], to broadcast over images."""
    return values[:, None, None, None]


def check_probability(p: float) -> None:
    """Raise ValueError unless 0 <= p <= 1."""
    if not 0 <= p <= 1:
        raise ValueError(f"probability {p} given; allowed are 0 to 1: 0 never applies the op, 1 always")


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors [N_i, ...] along the first dimension, without a copy if they are adjacent.

    Tensors are adjacent if they are consecutive parts of one tensor, in order: of one dtype and storage, with
    equal strides. The result is then a view. Tensors that require a gradient, or without a storage (as under
    FakeTensorMode), are always copied.
    """
    if len(tensors) == 1:
        return tensors[0]
    joint = _whole(tensors)
    return torch.cat(list(tensors)) if joint is None else joint


def _whole(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return the tensor that consists of these consecutive parts, or None."""
    first = tensors[0]
    alike = (first.dtype, first.shape[1:], first.stride())
    if any(t.requires_grad or (t.dtype, t.shape[1:], t.stride()) != alike for t in tensors):
        return None
    shape = (sum(len(t) for t in tensors), *first.shape[1:])
    last = sum((size - 1) * stride for size, stride in zip(shape, first.stride(), strict=True))
    if (first.storage_offset() + last + 1) * first.element_size() > first.untyped_storage().nbytes():
        return None
    joint = first.as_strided(shape, first.stride(), first.storage_offset())
    parts = joint.split([len(t) for t in tensors])
    return joint if all(t.is_set_to(part) for t, part in zip(tensors, parts, strict=True)) else None


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Normalise images; computed in float32 and rounded once.

    `images` is [B, C, H, W], uint8 in [0, 255] or floating in [0, 1]. `mean` and `std` have one value per
    channel, in units of [0, 1]. The result has `dtype` and is channels-last. Raises ValueError as
    `check_mean_and_std`.
    """
    check_mean_and_std(mean, std, images.shape[1])
    unit = 255.0 if images.dtype == torch.uint8 else 1.0
    # (x - m) / s = x * (1 / s) + (-m / s) takes one pass. The factors are made by fills because a tensor made
    # from a list would wait for the GPU.
    scale, shift = (filled(x, images.device)[:, None, None] for x in scale_and_shift(mean, std, unit))
    return (
        torch.addcmul(shift, images.to(torch.float32), scale)
        .to(dtype)
        .contiguous(memory_format=torch.channels_last)
    )


def scale_and_shift(
    mean: Sequence[float], std: Sequence[float], unit: float = 255.0
) -> tuple[list[float], list[float]]:
    """Return the factors of each channel with which (x / unit - mean) / std is x * scale + shift."""
    return [1 / (unit * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]


def check_mean_and_std(mean: Sequence[float], std: Sequence[float], num_channels: int) -> None:
    """Raise ValueError unless `mean` and `std` have one value per channel and every std is above 0."""
    if len(mean) != num_channels or len(std) != num_channels or min(std) <= 0:
        raise ValueError(
            f"mean {tuple(mean)} and std {tuple(std)} given for {num_channels} channels; "
            f"allowed is one value per channel each, std above 0"
        )


def out_shape(ops: Sequence[Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that operations make of images of `shape` [B, C, H, W].

    Raises ValueError for images that one of them refuses.
    """
    for op in ops:
        shape = op.out_shape(shape) if hasattr(op, "out_shape") else shape
    return shape


def check_fused_arguments(
    images: Tensor, ops: Sequence[object], mean: Sequence[float], std: Sequence[float], out: Tensor
) -> None:
    """Check the arguments of a fused kernel.

    `images` is uint8 [B, 3, H, W], and `out` a tensor of `out_shape` in channels-last memory. Raises
    ValueError as `out_shape` and `check_mean_and_std`.
    """
    shape = out_shape(ops, tuple(images.shape))
    assert images.dtype == torch.uint8 and images.shape[1] == 3, (images.dtype, images.shape)
    assert out.shape == shape, (out.shape, shape)
    assert out.is_contiguous(memory_format=torch.channels_last), out.stride()
    check_mean_and_std(mean, std, out.shape[1])


def filled(values: Sequence[float], device: torch.device) -> Tensor:
    """Return values as float32 [C] on the device, which the host does not wait for."""
    return torch.cat([torch.full((1,), value, dtype=torch.float32, device=device) for value in values])
