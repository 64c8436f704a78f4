"""Matrix products in whole float32, where a run's steps are allowed TF32 (`distributed.join_world`)."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Distances and covariances are differences of large numbers: TF32's 10 bits would move them by 1e-3 of these."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
