"""torch's flags for speed on a GPU.

They belong to the process, so a run sets them here, and the process's own values come back when it ends.
"""

from contextlib import ExitStack

import torch

_restore = ExitStack()  # of this process, as the flags are


def set_cudnn_benchmark(enabled: bool) -> None:
    """Let cuDNN time its algorithms for each new shape, or not. It pays where shapes are few."""
    cudnn = torch.backends.cudnn
    _restore.callback(setattr, cudnn, "benchmark", cudnn.benchmark)
    cudnn.benchmark = enabled


def allow_tf32() -> None:
    """Let matrix products of float32 be computed in TF32."""
    _restore.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("high")


def restore_flags() -> None:
    """Put back the values that the process had before the first call of the others."""
    _restore.close()
