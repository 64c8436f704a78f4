"""What every op does at its ends: ranges, dtypes and memory layout, and probabilities checked in one way."""

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
