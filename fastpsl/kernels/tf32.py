"""Matrix products in whole float32, where a run's steps are allowed TF32 (`engine.gpu_flags`)."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def no_tf32() -> Iterator[None]:
    """Compute matrix products of float32 in float32 within the context.

    Distances and covariances are differences of large numbers: TF32 would move them by 1e-3 of these.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
