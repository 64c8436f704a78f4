"""Small tensors in one buffer, so that one copy takes all of them to a device."""

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes: what vectorised loads want, and more than any dtype asks


def pack(tensors: Sequence[Tensor], *, pin_memory: bool = False) -> tuple[Tensor, list[int]]:
    """uint8 [N] on the host with the tensors' values, contiguous, one after the other; and where each begins, in bytes."""
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    buffer = torch.empty(end, dtype=torch.uint8, pin_memory=pin_memory)
    for tensor, view in zip(tensors, unpack(buffer, starts, tensors), strict=True):
        view.copy_(tensor)
    return buffer, starts


def unpack(buffer: Tensor, starts: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
    """Views of the buffer, or of its copy on a device, with the shapes and dtypes of `like`."""
    return [
        buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(starts, like, strict=True)
    ]
