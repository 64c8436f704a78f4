"""Optimizers for a training loop that you write."""

from fastpsl.console.offered import offer_only_all
from fastpsl.engine.optim.optimisers import LARS, lars_groups

__all__ = ["LARS", "lars_groups"]
offer_only_all(__name__)
