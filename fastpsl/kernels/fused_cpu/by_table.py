"""Flip and normalisation in one pass on the CPU, with a table of each channel's 256 results.

A byte has 256 values, so the table has every result in the output's dtype, rounded once. Only bits are
copied, or computed anew where that gives the same ones (look_up.c). Nothing of a batch's size is allocated.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels import c_look_up
from fastpsl.kernels.flip import Flip
from fastpsl.kernels.fused_cpu.threads import Draws, in_threads
from fastpsl.kernels.normalise import check_fused_arguments

# Integers of the dtypes' sizes in bytes, because numpy has no bfloat16.
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Bytes of input per thread: about 1 ms of work, because starting a thread takes 0.1 ms, and several ms on a
# busy machine.
_BYTES_PER_THREAD = 1 << 21


def fits(ops: Sequence[object]) -> bool:
    """Return whether `ops` are an optional Flip."""
    return [type(op) for op in ops] in ([], [Flip])


def out_shape(ops: Sequence[object], shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the result's shape, that of images of `shape` [B, 3, H, W]."""
    num, channels, height, width = shape
    return num, channels, height, width


def run(
    images: Tensor, ops: Sequence[object], draws: Sequence[Mapping[str, Tensor]], mean: Sequence[float],
    std: Sequence[float], out: Tensor,
) -> None:  # fmt: skip
    """Compute the result of `ops` into `out` in as many threads as torch uses; see kernels/fused.py."""
    assert fits(ops), ops
    check_fused_arguments(images, out_shape(ops, images.shape), mean, std, out)
    bits = _BITS[out.element_size()]
    scale, shift = _factors(mean, std)
    values = torch.empty((3, 256), dtype=out.dtype, device="cpu")
    torch.addcmul(shift, torch.arange(256, dtype=torch.float32, device="cpu"), scale, out=values)
    by_c = c_look_up.look_up()
    factors = torch.cat([scale, shift]).numpy() if out.dtype == torch.float32 else None
    loop = partial(by_c, factors) if by_c else _loop_of_numba()
    at_most = images.numel() // _BYTES_PER_THREAD
    in_threads(
        loop, partial(_arguments, values.view(bits).numpy()), images, draws, out.view(bits), bits, at_most
    )


def _loop_of_numba() -> Callable[..., None]:
    from fastpsl.kernels.fused_cpu import by_table_loops  # imports numba, which takes 0.7 s

    return by_table_loops.look_up  # type: ignore[no-any-return]


def _arguments(
    table: np.ndarray, pixels: np.ndarray, draws: Draws, out: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Return the arguments of `look_up`, as `in_threads` asks for them."""
    num, height = pixels.shape[:2]
    flip = np.ascontiguousarray(draws[0]["flip"].numpy()) if draws else np.zeros(num, np.bool_)
    return pixels.reshape(num, height, -1), flip, table, out.reshape(num, height, -1)


def _factors(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return each channel's scale for bytes, and its shift, float32 [3, 1]."""
    per_channel = np.array([(1 / s, -m / s) for m, s in zip(mean, std, strict=True)], np.float32)
    scale, shift = torch.from_numpy(per_channel.T.copy())[..., None]
    return scale / 255, shift
