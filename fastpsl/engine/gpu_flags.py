"""Flags of torch for speed on a GPU.

They belong to the process. A run sets them by these functions, and `restore_flags` restores the process's own
values.
"""

from contextlib import ExitStack

import torch

_restore = ExitStack()  # global, as the flags are


def set_cudnn_benchmark(enabled: bool) -> None:
    """Set whether cuDNN times its algorithms for each new shape, which pays if there are few shapes."""
    cudnn = torch.backends.cudnn
    _restore.callback(setattr, cudnn, "benchmark", cudnn.benchmark)
    cudnn.benchmark = enabled


def allow_tf32() -> None:
    """Allow TF32 for matrix products of float32."""
    _restore.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("high")


def restore_flags() -> None:
    """Restore the values that the process had before the first call of the other functions."""
    _restore.close()
