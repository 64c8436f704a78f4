"""Reusable memory for the bytes of batches."""

from collections import deque

import numpy as np
import torch


class Arena:
    """The memory of one batch; it returns to its pool when this object is deleted."""

    def __init__(self, memory: np.ndarray, is_pinned: bool, free: "deque[np.ndarray]") -> None:
        self.memory, self.is_pinned, self._free = memory, is_pinned, free

    def __del__(self) -> None:
        self._free.append(self.memory)


class Arenas:
    """A pool of arenas.

    Fresh memory is mapped and cleared page by page, under a lock of the whole process. The pool keeps as many
    arenas as were ever in use at once. Each is a quarter larger than the batch it was allocated for.

    Args:
        pinned: Whether the memory is page-locked, which needs a CUDA device.
    """

    def __init__(self, pinned: bool = False) -> None:
        self._pinned = pinned
        self._free: deque[np.ndarray] = deque()

    def take(self, num_bytes: int) -> Arena:
        """Take an arena of at least `num_bytes`, in any thread.

        Raises:
            ValueError: If there is not enough pinned memory.
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
            raise ValueError(
                f"no {num_bytes >> 20:,} MiB of pinned host memory for a batch "
                f"({' '.join(str(error).split())[:200]}): "
                "lower --prefetch-batches or --batch-size, or use --decoder turbo"
            ) from error
        return memory
