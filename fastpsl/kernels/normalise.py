"""Normalisation: (x - mean) / std per channel, in the network's dtype, channels-last."""

from collections.abc import Sequence

import torch
from torch import Tensor


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Normalise images; computed in float32 and rounded once.

    Args:
        images: [B, C, H, W], uint8 in [0, 255] or floating in [0, 1].
        mean: One value per channel, in units of [0, 1].
        std: One value per channel, in the same units.
        dtype: The dtype of the result.

    Returns:
        [B, C, H, W], channels-last.

    Raises:
        ValueError: As `check_mean_and_std`.
    """
    check_mean_and_std(mean, std, images.shape[1])
    unit = 255.0 if images.dtype == torch.uint8 else 1.0
    # (x - m) / s = x * (1 / s) + (-m / s) takes one pass. The factors are made by fills because a tensor made
    # from a list would wait for the GPU.
    scale = filled([1 / (unit * s) for s in std], images.device)[:, None, None]
    shift = filled([-m / s for m, s in zip(mean, std, strict=True)], images.device)[:, None, None]
    return (
        torch.addcmul(shift, images.to(torch.float32), scale)
        .to(dtype)
        .contiguous(memory_format=torch.channels_last)
    )


def check_mean_and_std(mean: Sequence[float], std: Sequence[float], num_channels: int) -> None:
    """Raise ValueError unless `mean` and `std` have one value per channel and every std is above 0."""
    if len(mean) != num_channels or len(std) != num_channels or min(std) <= 0:
        raise ValueError(
            f"mean {tuple(mean)} and std {tuple(std)} given for {num_channels} channels; "
            f"allowed is one value per channel each, std above 0"
        )


def check_fused_arguments(
    images: Tensor, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], out: Tensor
) -> None:
    """Check the arguments of a fused kernel.

    Args:
        images: uint8 [B, 3, H, W].
        shape: The result's shape.
        mean: As in `normalise`.
        std: As in `normalise`.
        out: A tensor of `shape` in channels-last memory.

    Raises:
        ValueError: As `check_mean_and_std`.
    """
    assert images.dtype == torch.uint8 and images.shape[1] == 3, (images.dtype, images.shape)
    assert out.shape == tuple(shape), (out.shape, shape)
    assert out.is_contiguous(memory_format=torch.channels_last), out.stride()
    check_mean_and_std(mean, std, out.shape[1])


def filled(values: Sequence[float], device: torch.device) -> Tensor:
    """Return values as float32 [C] on the device, which the host does not wait for."""
    return torch.cat([torch.full((1,), value, dtype=torch.float32, device=device) for value in values])
