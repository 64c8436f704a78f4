"""Whole views in one pass over memory by numba, an image at a time."""
