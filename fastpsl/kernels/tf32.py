"""Matrix products in full float32, although a run's steps may use TF32 (`engine.gpu_flags`)."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def no_tf32() -> Iterator[None]:
    """Compute float32 matrix products in float32 within the context.

    Distances and covariances are differences of large numbers, and TF32 would change them by 1e-3 of these.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
