"""Optimizers for a training loop that you write."""

from fastpsl.engine.optim.optimisers import LARS, lars_groups

__all__ = ["LARS", "lars_groups"]
