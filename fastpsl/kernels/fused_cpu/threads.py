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
_VALUES_PER_PART = 1 << 19  # of results: 2 MB in float32, which a core's cache holds
_VALUES_PER_COPY = 1 << 14  # torch copies as many in the thread that calls, instead of in threads of its own


def in_threads(
    loop: Callable[..., None], arguments: Callable[[np.ndarray, Draws, np.ndarray], Sequence[Any]],
    images: Tensor, draws: Draws, out: Tensor, dtype: torch.dtype, at_most: int,
) -> None:  # fmt: skip
    """Run a compiled loop over a batch in as many threads as torch uses.

    Thread i of n takes every n-th image from i on, because expensive images may be adjacent. The caller's
    thread is one of them. Where images or results do not lie as the loop needs them, each thread copies a few
    images at a time. Memory for copies of a batch would be mapped and cleared page by page.

    `arguments` gets contiguous images, uint8 [B, H, W, 3], their draws, and memory for the results, `dtype`
    [N, h, w, C]. The loop is called with what it returns, `first` and `step`. Images are [B, 3, H, W] of any
    strides, `out` is [N, C, h, w] in channels-last memory with a multiple of B. Results of another dtype than
    `out` are rounded once.
    """
    pixels, results, num = images.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1), len(images)
    if not results.numel():
        return
    per_image, is_direct = len(results) // num, out.dtype == dtype
    if is_direct and pixels.is_contiguous():
        whole = arguments(pixels.numpy(), draws, results.numpy())
        _in_threads(lambda first, step: loop(*whole, first, step), len(results), at_most)
        return
    size = max(1, _VALUES_PER_PART * num // results.numel())
    is_inference = torch.is_inference_mode_enabled()  # each thread has a mode of its own

    @torch.inference_mode(is_inference)
    def loop_over_parts(first: int, step: int) -> None:
        memory = torch.empty((size * per_image, *results.shape[1:]), dtype=dtype, device="cpu")
        for start in range(first * size, num, step * size):
            part = slice(start, start + size)
            target = results[start * per_image : part.stop * per_image]
            values = target if is_direct else memory[: len(target)]
            part_draws = [{name: value[part] for name, value in draw.items()} for draw in draws]
            loop(*arguments(np.ascontiguousarray(pixels[part].numpy()), part_draws, values.numpy()), 0, 1)
            if not is_direct:
                copies = (tensor.view(-1).split(_VALUES_PER_COPY) for tensor in (target, values))
                for to, few in zip(*copies, strict=True):
                    to.copy_(few)

    _in_threads(loop_over_parts, -(-num // size), at_most)


def _in_threads(loop: Callable[[int, int], None], num: int, at_most: int) -> None:
    num_threads = max(1, min(torch.get_num_threads(), num, at_most))
    with ThreadPoolExecutor(num_threads) as pool:
        futures = [pool.submit(loop, part, num_threads) for part in range(1, num_threads)]
        loop(0, num_threads)
        for future in futures:
            future.result()
