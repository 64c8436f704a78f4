"""Matrix products in full float32, although a run's steps may use TF32 (`engine.gpu_flags`)."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def no_tf32() -> Iterator[None]:
    """Compute float32 matrix products in float32 within the context.

    Distances and covariances are differences of large numbers, and TF32 would change them by 1e-3 of these.
    """
    torch_backends: Any = torch.backends
    backends = torch_backends.cuda.matmul, torch_backends.mkldnn.matmul
    values = [backend.fp32_precision for backend in backends]
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the user's program has set the backends one by one
        before = "highest"
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        for backend, value in zip(backends, values, strict=True):
            backend.fp32_precision = value
