"""Optimisers for a training loop of one's own."""

from fastpsl.engine.optim.lars import LARS, lars_groups

__all__ = ["LARS", "lars_groups"]
