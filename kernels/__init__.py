"""Arithmetic on batches and numba code: draws, permutations, crops, colour, blur. No files, no configuration."""
