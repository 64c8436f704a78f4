"""This process's rank. This module does not import torch, which is slow."""

import os


def own_rank() -> int:
    """Return this process's rank from torchrun's environment, or 0 without it."""
    return int(os.environ.get("RANK", "0"))
