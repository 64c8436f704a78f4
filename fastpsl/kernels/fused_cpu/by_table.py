"""Flip and normalisation in one pass on the CPU, with a table of each channel's 256 results.

A byte has 256 values, so the table has every result in the output's dtype, rounded once. Only bits are
copied, or computed anew where that gives the same ones (look_up.c). Nothing of a batch's size is allocated.

Numba's cache does not notice an edit of another file, so everything compiled is here and uses no value of
another file.
"""

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.c_library import open_library
from fastpsl.kernels.fused_cpu.threads import Draws, in_threads
from fastpsl.kernels.geometry import Flip
from fastpsl.kernels.jit import njit
from fastpsl.kernels.normalise import check_fused_arguments, scale_and_shift

# Integers of the dtypes' sizes in bytes, because numpy has no bfloat16.
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Bytes of input per thread: about 1 ms of work, because starting a thread takes 0.1 ms, and several ms on a
# busy machine.
_BYTES_PER_THREAD = 1 << 21


def fits(ops: Sequence[object]) -> bool:
    """Return whether `ops` are an optional Flip."""
    return [type(op) for op in ops] in ([], [Flip])


def run(
    images: Tensor, ops: Sequence[object], draws: Sequence[Mapping[str, Tensor]], mean: Sequence[float],
    std: Sequence[float], out: Tensor,
) -> None:  # fmt: skip
    """Compute the result of `ops` into `out` in as many threads as torch uses; see kernels/fused.py."""
    assert fits(ops), ops
    check_fused_arguments(images, ops, mean, std, out)
    bits = _BITS[out.element_size()]
    scale, shift = torch.tensor(scale_and_shift(mean, std, 1.0), dtype=torch.float32, device="cpu")[..., None]
    scale = scale / 255
    values = torch.empty((3, 256), dtype=out.dtype, device="cpu")
    torch.addcmul(shift, torch.arange(256, dtype=torch.float32, device="cpu"), scale, out=values)
    by_c = look_up()
    factors = torch.cat([scale, shift]).numpy() if out.dtype == torch.float32 else None
    loop = partial(by_c, factors) if by_c else look_up_by_numba
    at_most = images.numel() // _BYTES_PER_THREAD
    in_threads(
        loop, partial(_arguments, values.view(bits).numpy()), images, draws, out.view(bits), bits, at_most
    )


def _arguments(
    table: np.ndarray, pixels: np.ndarray, draws: Draws, out: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Return the arguments of `look_up`, as `in_threads` asks for them."""
    num, height = pixels.shape[:2]
    flip = np.ascontiguousarray(draws[0]["flip"].numpy()) if draws else np.zeros(num, np.bool_)
    return pixels.reshape(num, height, -1), flip, table, out.reshape(num, height, -1)


@functools.cache
def look_up() -> Callable[..., None] | None:
    """Return the loop, loaded once per process, or None where it was not built or does not load.

    It takes what `look_up_by_numba` does, arrays in contiguous memory. Before them it takes `factors`:
    float32 [2, 3], the scale and the shift of each channel of a table of floats, or None.
    """
    try:
        function = open_library("fastpsl.kernels._look_up").fastpsl_look_up
    except OSError:
        return None
    function.argtypes = [*(ctypes.c_void_p,) * 4, *(ctypes.c_int64,) * 6, ctypes.c_void_p]
    function.restype = None

    def loop(
        factors: np.ndarray | None, pixels: np.ndarray, flip: np.ndarray, table: np.ndarray, out: np.ndarray,
        first: int, step: int,
    ) -> None:  # fmt: skip
        num, height, values = pixels.shape
        places = (array.ctypes.data for array in (pixels, flip, table, out))
        sizes = num, height, values // 3, out.itemsize, first, step
        function(*places, *sizes, None if factors is None else factors.ctypes.data)

    return loop


@njit(cache=True, nogil=True)
def look_up_by_numba(
    pixels: np.ndarray, flip: np.ndarray, table: np.ndarray, out: np.ndarray, first: int, step: int
) -> None:
    """Process the images first, first + step, ... of a batch.

    `pixels` is uint8 [B, H, 3 W], and `out` has its shape. `table` [3, 256] has the dtype of `out` and a row
    per channel. An image is mirrored if `flip`, bool [B], is set. Unsigned indices avoid numba's check for
    negative ones.
    """
    num, height, values = pixels.shape
    red, green, blue = table[0], table[1], table[2]
    for b in range(first, num, step):
        start, along = (values - 3, -3) if flip[b] else (0, 3)
        for i in range(height):
            row, line, at = pixels[b, i], out[b, i], start
            for j in range(np.uint64(values // 3)):
                p, q = np.uint64(3) * j, np.uint64(at)
                line[p] = red[row[q]]
                line[p + np.uint64(1)] = green[row[q + np.uint64(1)]]
                line[p + np.uint64(2)] = blue[row[q + np.uint64(2)]]
                at += along
