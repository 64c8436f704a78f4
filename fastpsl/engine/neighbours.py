"""The search for nearest neighbours with a progress report."""

import numpy as np
import torch
from torch import Tensor

from fastpsl.console.progress import operation
from fastpsl.kernels.nearest import Neighbours, nearest, num_million_pairs


def find_neighbours(
    queries: Tensor | np.ndarray, bank: Tensor | np.ndarray, k: int, device: torch.device
) -> Neighbours:
    """Return `nearest` of the arguments, and report its progress every ten seconds."""
    with operation("looking for neighbours", "million pairs", num_million_pairs(queries, bank)) as progress:
        return nearest(queries, bank, k, device, on_million_pairs=progress.update)
