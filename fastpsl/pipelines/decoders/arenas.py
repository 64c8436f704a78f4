"""Memory for the bytes of batches, used again and again."""

from collections import deque

import numpy as np
import torch


class Arena:
    """Memory of one batch; it goes back to its pool as the last holder of this object lets it go."""

    def __init__(self, memory: np.ndarray, is_pinned: bool, free: "deque[np.ndarray]") -> None:
        self.memory, self.is_pinned, self._free = memory, is_pinned, free

    def __del__(self) -> None:
        self._free.append(self.memory)


class Arenas:
    """Arenas that are used again: fresh memory is mapped and cleared page by page, under a lock of the whole process. As many are
    kept as were ever in use at once, each as large as the largest batch that it held, and a quarter more. `pinned`: page-locked, which needs a CUDA device."""

    def __init__(self, pinned: bool = False) -> None:
        self._pinned = pinned
        self._free: deque[np.ndarray] = deque()

    def take(self, num_bytes: int) -> Arena:
        """At least num_bytes; any thread. The one given back last: a cache may still hold it. ValueError where there is no pinned memory."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if len(memory) < num_bytes:
            memory = self._new(num_bytes * 5 // 4)
        return Arena(memory, self._pinned, self._free)

    def _new(self, num_bytes: int) -> np.ndarray:
        if not self._pinned:
            return np.empty(num_bytes, np.uint8)
        try:
            # The array holds the tensor, whose pages torch never unlocks but keeps for the next. It rounds sizes up to powers of two.
            memory: np.ndarray = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True).numpy()
        except RuntimeError as error:
            raise ValueError(
                f"no {num_bytes >> 20:,} MiB of pinned host memory for a batch ({' '.join(str(error).split())[:200]}): "
                "lower --prefetch-batches or --batch-size, or use --decoder ffcv"
            ) from error
        return memory
