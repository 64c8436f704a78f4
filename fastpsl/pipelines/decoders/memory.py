"""Memory of the host for images: pinned for copies to a GPU, in arenas, and used again batch after batch.

Where the system can pin no more, a process warns once. Memory that is not pinned then takes its place, and
the thread that starts such a copy waits.
"""

import math
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastpsl.console.words import warn
from fastpsl.files.atomic import Uncopyable

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
    if not tensor.is_pinned():  # the thread would wait for a copy from such memory
        try:
            tensor = tensor.pin_memory()
        except RuntimeError as error:
            warn_of_unpinned(tensor.nbytes, error)
            return tensor.to(device)
    return tensor.to(device, non_blocking=True)


def warn_of_unpinned(num_bytes: int, error: RuntimeError) -> None:
    """Warn, once per process, that memory which should be pinned is not."""
    if _has_warned.is_set():  # every later batch would warn as well
        return
    _has_warned.set()
    warn(
        f"no {num_bytes:,} bytes of pinned host memory ({' '.join(str(error).split())[:200]}): "
        "copies to and from the GPU use memory that is not pinned, and take longer; lower "
        "--prefetch-batches or --batch-size, or end other programs that pin memory",
        stacklevel=3,
    )


class Arena(Uncopyable):
    """The memory of one batch; it returns to its pool when this object is deleted.

    `np.asarray(arena)` is an array of the memory, uint8, that keeps the arena alive.
    """

    def __init__(self, memory: np.ndarray, is_pinned: bool, free: "deque[np.ndarray]") -> None:
        self.memory, self.is_pinned, self._free = memory, is_pinned, free

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Hand the memory over to numpy, whose array then refers to this object."""
        return self.memory.__array_interface__

    def __del__(self) -> None:
        self._free.append(self.memory)


class Arenas:
    """A pool of arenas."""

    def __init__(self, pinned: bool = False, limit: int | None = None) -> None:
        self._pinned = pinned
        # A deque, which needs no lock: arenas come back in whatever thread deletes them.
        self._free: deque[np.ndarray] = deque(maxlen=limit)

    def take(self, num_bytes: int) -> Arena:
        """Take an arena of at least `num_bytes`, in any thread.

        Where pinned memory is exhausted, it warns once, and no arena counts as pinned from then on.
        """
        # Fresh memory is mapped and cleared page by page, under a lock of the whole process.
        try:
            memory = self._free.pop()  # the last one returned, because a CPU cache may still hold it
        except IndexError:
            memory = np.empty(0, np.uint8)
        if len(memory) < num_bytes:
            memory = self._new(num_bytes * 5 // 4)  # a quarter more, so that larger batches find room, too
        return Arena(memory, self._pinned, self._free)

    def _new(self, num_bytes: int) -> np.ndarray:
        if not self._pinned:
            return np.empty(num_bytes, np.uint8)
        try:
            # The array keeps the tensor alive. torch rounds sizes up to powers of two, and keeps freed pages
            # locked for its next tensors.
            memory: np.ndarray = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True).numpy()
        except RuntimeError as error:
            self._pinned = False
            warn_of_unpinned(num_bytes, error)
            return np.empty(num_bytes, np.uint8)
        return memory


# Arenas to keep where the consumer has held many batches and dropped them. More would hold memory that nobody
# uses, and fewer would have it mapped anew (not measured).
_MAX_FREE = 4
_ALIGNMENT = 64  # bytes, a cache line, as torch's own memory


class ViewMemory:
    """A pool of memory for the views of batches, for any thread.

    Memory goes back when the last tensor or array that refers to it is deleted, also by DLPack or in a graph
    of autograd. If all of it is in use, more is allocated. A forked process has its own copy. In a process
    that uses CUDA the memory is pinned.
    """

    def __init__(self) -> None:
        self._arenas = Arenas(limit=_MAX_FREE)

    def empty(self, shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> list[Tensor]:
        """Return uninitialised tensors [N, C, H, W] in channels-last memory that share one buffer."""
        starts, end = [], 0
        for shape in shapes:
            starts.append(end)
            end += -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        buffer = self._take(end)
        tensors = []
        for start, (num, channels, height, width) in zip(starts, shapes, strict=True):
            values = buffer[start : start + num * channels * height * width * dtype.itemsize].view(dtype)
            tensors.append(values.view(num, height, width, channels).permute(0, 3, 1, 2))
        return tensors

    def _take(self, num_bytes: int) -> Tensor:
        """Return a tensor, uint8 [num_bytes], whose storage has no more than these bytes."""
        if torch.cuda.is_initialized():
            return pinned_empty(num_bytes)  # by torch, which uses it again after the copies from it
        memory = np.asarray(self._arenas.take(num_bytes + _ALIGNMENT))
        start = -memory.ctypes.data % _ALIGNMENT
        return torch.from_numpy(memory[start : start + num_bytes])
