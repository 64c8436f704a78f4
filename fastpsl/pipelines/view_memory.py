"""The memory of views on the CPU, used again for the next batches once nothing refers to it."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastpsl.pipelines.decoders.arenas import Arenas
from fastpsl.pipelines.pinned import pinned_empty

_MAX_FREE = 4  # arenas to keep where the consumer has held many batches and dropped them
_ALIGNMENT = 64  # bytes, a cache line, as torch's own memory


class ViewMemory:
    """A pool of memory for the views of batches, for any thread.

    Memory goes back when the last tensor or array that refers to it is deleted, also by DLPack or in a graph
    of autograd. If all of it is in use, more is allocated. A forked process has its own copy.

    In a process that uses CUDA the memory is pinned, by torch's allocator. That uses it again when the copies
    from it have ended, too.
    """

    def __init__(self) -> None:
        self._arenas = Arenas(limit=_MAX_FREE)

    def empty(self, shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> list[Tensor]:
        """Return uninitialised tensors in channels-last memory that share one buffer.

        Args:
            shapes: The shapes [N, C, H, W].
            dtype: The dtype of all.
        """
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
            return pinned_empty(num_bytes)
        memory = np.asarray(self._arenas.take(num_bytes + _ALIGNMENT))
        start = -memory.ctypes.data % _ALIGNMENT
        return torch.from_numpy(memory[start : start + num_bytes])
