"""The record of the machine."""

import os
import platform

import numpy as np
import torch

from fastpsl.engine.distributed import World, environment


def test_the_record_is_of_all_ranks_and_of_this_machine() -> None:
    record = environment(World(3, 8, 1, 4, torch.device("cpu")))
    assert record["world_size"] == 8 and record["gpu"] is None
    assert record["python"] == platform.python_version() and record["cpu_count"] == os.cpu_count()
    assert record["torch_threads"] == torch.get_num_threads()
    assert record["packages"]["numpy"] == np.__version__
    names = {"torch", "torchvision", "numba", "numpy", "kornia", "ffcv", "triton"}
    assert record["packages"].keys() == names
