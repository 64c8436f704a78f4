"""Arithmetic on arrays: draws, crops, operations, fused kernels, permutations, nearest neighbours.

It touches no files.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
