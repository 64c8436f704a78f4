"""Compiled loops over images in threads that last for one call.

Numba's own threads crash if two threads of a process call at once, and a lasting pool hangs after a fork.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


def in_threads(loop: Callable[..., None], arguments: Sequence[Any], num: int, at_most: int) -> None:
    """Run a compiled loop in as many threads as torch uses.

    Thread i of n takes every n-th image from i on, because expensive images may be adjacent. The caller's
    thread is one of them.

    Args:
        loop: Called with the arguments, `first` and `step`, to process images first, first + step, ....
        arguments: The arguments of the loop.
        num: The number of images.
        at_most: The largest number of threads.
    """
    num_threads = max(1, min(torch.get_num_threads(), num, at_most))
    with ThreadPoolExecutor(num_threads) as pool:
        futures = [pool.submit(loop, *arguments, part, num_threads) for part in range(1, num_threads)]
        loop(*arguments, 0, num_threads)
        for future in futures:
            future.result()
