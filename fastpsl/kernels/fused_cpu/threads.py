"""Compiled loops over pictures in several threads of this call alone.

Numba's own crash when two threads of a process call at once, and a pool that is kept hangs after a fork.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


def in_threads(loop: Callable[..., None], arguments: Sequence[Any], num: int, at_most: int) -> None:
    """loop(*arguments, first, step), for pictures first, first + step, ... of `num`: in as many threads as torch uses, and `at_most`.

    Every n-th picture each, as the dear ones may stand together. One thread is the caller's.
    """
    num_threads = max(1, min(torch.get_num_threads(), num, at_most))
    with ThreadPoolExecutor(num_threads) as pool:
        others = [pool.submit(loop, *arguments, part, num_threads) for part in range(1, num_threads)]
        loop(*arguments, 0, num_threads)
        for other in others:
            other.result()
