"""Two ranks of a recipe on one device, over gloo: NCCL refuses two ranks of one GPU, and gloo moves the same tensors.

python -m torch.distributed.run --standalone --nproc-per-node=2 -m tests.recipes.two_ranks recipes/simclr_r50.py --device cuda …
"""

import runpy
import sys
from typing import Any

import torch
import torch.distributed as dist

from fastpsl import distributed

start = dist.init_process_group


def one_for_both(name: str, local_rank: int) -> torch.device:
    return torch.device("cuda", 0) if name == "cuda" else torch.device(name)


def by_gloo(backend: str, **more: Any) -> None:
    start("gloo", **more)


if __name__ == "__main__":
    distributed.choose_device = one_for_both
    dist.init_process_group = by_gloo  # type: ignore[assignment]
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
