"""Compiled loops over images, in threads that last for one call, and without memory of a batch's size.

Numba's own threads crash if two threads of a process call at once, and a lasting pool hangs after a fork.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

Draws = Sequence[Mapping[str, Tensor]]
# Values of the results per part and thread: 2 MB in float32, so that starting the threads takes little.
_VALUES_PER_THREAD = 1 << 19


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


def in_parts(
    run: Callable[[np.ndarray, Draws, np.ndarray], None], images: Tensor, draws: Draws, out: Tensor,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    """Run a fused chain on contiguous memory, with copies of only a few images at a time.

    If images and results already lie as the chain needs them, it runs once. Fresh memory of a batch's size
    would cost more than the copies, because the kernel maps and clears it page by page.

    Args:
        run: Computes results, `dtype` [N, h, w, C], from images, uint8 [B, H, W, 3], and their draws.
        images: uint8 [B, 3, H, W], of any strides.
        draws: The draws of the operations, tensors [B, ...].
        out: The results, [N, C, h, w] in channels-last memory, N a multiple of B.
        dtype: The dtype that `run` writes; for another one of `out`, values are rounded.
    """
    pixels, results, num = images.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1), len(images)
    if not results.numel():
        return
    if pixels.is_contiguous() and out.dtype == dtype:
        run(pixels.numpy(), draws, results.numpy())
        return
    per_image = len(results) // num
    step = max(1, torch.get_num_threads() * _VALUES_PER_THREAD * num // results.numel())
    memory = torch.empty((step * per_image, *results.shape[1:]), dtype=dtype, device="cpu")
    for first in range(0, num, step):
        part = slice(first, first + step)
        target = results[first * per_image : (first + step) * per_image]
        values = target if out.dtype == dtype else memory[: len(target)]
        run(pixels[part].contiguous().numpy(), [_of(part, draw) for draw in draws], values.numpy())
        if values is not target:
            target.copy_(values)


def _of(part: slice, draw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: values[part] for name, values in draw.items()}
