"""Arithmetic on arrays: draws, crops, ops, permutations. No files."""
