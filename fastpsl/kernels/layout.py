"""The conventions at every op's ends: ranges, dtypes, memory layout, and the check of probabilities."""

from collections.abc import Sequence

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
