"""Reusable memory for the bytes and the images of batches."""

from collections import deque
from typing import Any

import numpy as np
import torch

from fastpsl.files.atomic import Uncopyable
from fastpsl.pipelines.pinned import warn_of_unpinned


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
    """A pool of arenas.

    Fresh memory is mapped and cleared page by page, under a lock of the whole process. Each arena is a
    quarter larger than the batch it was allocated for.

    Args:
        pinned: Whether the memory is page-locked, which needs a CUDA device.
        limit: The most arenas to keep while they are not in use; by default as many as were ever in use.
    """

    def __init__(self, pinned: bool = False, limit: int | None = None) -> None:
        self._pinned = pinned
        self._free: deque[np.ndarray] = deque(maxlen=limit)

    def take(self, num_bytes: int) -> Arena:
        """Take an arena of at least `num_bytes`, in any thread.

        Where pinned memory is exhausted, it warns once, and no arena counts as pinned from then on.
        """
        try:
            memory = self._free.pop()  # the last one returned, because a CPU cache may still hold it
        except IndexError:
            memory = np.empty(0, np.uint8)
        if len(memory) < num_bytes:
            memory = self._new(num_bytes * 5 // 4)
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
