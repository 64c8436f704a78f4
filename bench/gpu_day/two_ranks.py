r"""A launcher that runs a recipe with two ranks on one GPU.

NCCL refuses two ranks on one GPU, so that gloo moves the same tensors.

    python -m torch.distributed.run --standalone --nproc-per-node=2 \
        bench/gpu_day/two_ranks.py RECIPE OPTIONS...
"""

import runpy
import sys
from typing import Any

import torch
import torch.distributed as dist

from fastpsl.engine import distributed


def main() -> None:
    start = dist.init_process_group

    def start_gloo(backend: str, **settings: Any) -> None:
        start("gloo", **settings)

    dist.init_process_group = start_gloo  # type: ignore[assignment]
    if torch.cuda.is_available():
        distributed.choose_device = lambda name, local_rank: torch.device("cuda", 0)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
