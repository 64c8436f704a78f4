"""Whole views on a CPU in one pass over memory by numba, one image at a time."""
