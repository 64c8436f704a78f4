"""Arithmetic on batches and numba code: draws, crops, colour, blur, permutations. No files."""
