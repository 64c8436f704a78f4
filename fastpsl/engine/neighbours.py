"""The search for nearest neighbours, heard of while it lasts."""

import numpy as np
import torch
from torch import Tensor

from fastpsl.kernels.nearest import Neighbours, nearest, num_million_pairs
from fastpsl.pipelines.doing import doing


def find_neighbours(
    queries: Tensor | np.ndarray, bank: Tensor | np.ndarray, k: int, device: torch.device
) -> Neighbours:
    """Return `nearest`, whose progress is said every ten seconds."""
    with doing("looking for neighbours", "million pairs", num_million_pairs(queries, bank)) as told:
        return nearest(queries, bank, k, device, on_million_pairs=told.update)
