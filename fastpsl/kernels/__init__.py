"""Arithmetic on arrays: draws, crops, ops, permutations. No files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
