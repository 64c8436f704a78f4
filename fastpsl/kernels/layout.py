"""What every op does at its ends: ranges, dtypes and memory layout, and probabilities checked in one way."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_float32(images: Tensor) -> Tensor:
    """float32 in [0, 1] from uint8 in [0, 255] or floating in [0, 1]; float32 is not copied."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32) / 255
    return images.to(torch.float32)


def result_dtype(images: Tensor) -> torch.dtype:
    """float32 for uint8 images, else the dtype that came in."""
    return torch.float32 if images.dtype == torch.uint8 else images.dtype


def finish(images: Tensor, dtype: torch.dtype) -> Tensor:
    """`images` as `dtype` in channels-last memory; nothing is copied where nothing changes."""
    return images.to(dtype).contiguous(memory_format=torch.channels_last)


def per_sample(values: Tensor) -> Tensor:
    """[B] → [B, 1, 1, 1], to meet images."""
    return values[:, None, None, None]


def check_probability(p: float) -> None:
    """ValueError unless 0 <= p <= 1."""
    if not 0 <= p <= 1:
        raise ValueError(f"probability {p} given; allowed are 0 to 1: 0 never applies the op, 1 always")


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """[N_1, ...], [N_2, ...], ... → [N_1 + N_2 + ..., ...], as torch.cat; without a copy where they lie so already.

    So they do as consecutive parts, in order, of one tensor: of one dtype, one storage and equal strides. The result is
    then a view. Tensors that a gradient flows to are concatenated, and so is what has no storage, as under FakeTensorMode.
    """
    if len(tensors) == 1:
        return tensors[0]
    whole = _whole(tensors)
    return torch.cat(list(tensors)) if whole is None else whole


def _whole(tensors: Sequence[Tensor]) -> Tensor | None:
    """The tensor of which these are consecutive parts, if they are."""
    first = tensors[0]
    alike = (first.dtype, first.shape[1:], first.stride())
    if any(t.requires_grad or (t.dtype, t.shape[1:], t.stride()) != alike for t in tensors):
        return None
    shape = (sum(len(t) for t in tensors), *first.shape[1:])
    last = sum((size - 1) * stride for size, stride in zip(shape, first.stride(), strict=True))
    if (first.storage_offset() + last + 1) * first.element_size() > first.untyped_storage().nbytes():
        return None
    whole = first.as_strided(shape, first.stride(), first.storage_offset())
    parts = whole.split([len(t) for t in tensors])
    return whole if all(t.is_set_to(part) for t, part in zip(tensors, parts, strict=True)) else None
