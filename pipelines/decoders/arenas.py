"""Memory for the bytes of batches, used again and again."""

from collections import deque

import numpy as np


class Arena:
    """Memory of one batch; it goes back to its pool as the last holder of this object lets it go."""

    def __init__(self, memory: np.ndarray, free: "deque[np.ndarray]") -> None:
        self.memory, self._free = memory, free

    def __del__(self) -> None:
        self._free.append(self.memory)


class Arenas:
    """Arenas that are used again: fresh memory is mapped and cleared page by page, under a lock of the whole process. As many are
    kept as were ever in use at once, each as large as the largest batch that it held, and a quarter more."""

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque()

    def take(self, num_bytes: int) -> Arena:
        """At least num_bytes; any thread. The one given back last: a cache may still hold it."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if len(memory) < num_bytes:
            memory = np.empty(num_bytes * 5 // 4, np.uint8)
        return Arena(memory, self._free)
