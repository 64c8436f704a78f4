"""Pinned (page-locked) memory of the host. Its copies to and from a GPU run beside other work.

Where the system has none left, a process warns once. Memory that is not pinned then takes its place, and the
thread that starts such a copy waits.
"""

import threading
import warnings

import torch
from torch import Tensor

_has_warned = threading.Event()


def pinned_empty(*shape: int) -> Tensor:
    """Return memory without values, uint8 of a shape: pinned, or as usual where that is exhausted."""
    try:
        return torch.empty(shape, dtype=torch.uint8, device="cpu", pin_memory=True)
    except RuntimeError as error:
        memory = torch.empty(shape, dtype=torch.uint8, device="cpu")
        warn_of_unpinned(memory.nbytes, error)
        return memory


def pinned_like(tensor: Tensor) -> Tensor:
    """Return host memory without values of a tensor's shape, layout and dtype, pinned as by `pinned_empty`.

    A GPU's copy to it has arrived when an event recorded after it has passed, whether it is pinned or not.
    """
    try:
        return torch.empty_like(tensor, device="cpu", requires_grad=False, pin_memory=True)
    except RuntimeError as error:
        warn_of_unpinned(tensor.nbytes, error)
        return torch.empty_like(tensor, device="cpu", requires_grad=False)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Start a copy to a CUDA device from pinned memory, and return it.

    A tensor that is there already is returned. One that is not pinned is copied to pinned memory first. Where
    that is exhausted, the calling thread waits for the copy.
    """
    if tensor.device == device:
        return tensor
    if not tensor.is_pinned():
        try:
            tensor = tensor.pin_memory()
        except RuntimeError as error:
            warn_of_unpinned(tensor.nbytes, error)
            return tensor.to(device)
    return tensor.to(device, non_blocking=True)


def warn_of_unpinned(num_bytes: int, error: RuntimeError) -> None:
    """Warn, once per process, that memory which should be pinned is not."""
    if _has_warned.is_set():
        return
    _has_warned.set()
    warnings.warn(
        f"no {num_bytes:,} bytes of pinned host memory ({' '.join(str(error).split())[:200]}): "
        "copies to and from the GPU use memory that is not pinned, and take longer; lower --prefetch-batches "
        "or --batch-size, or end other programs that pin memory",
        stacklevel=3,
    )
