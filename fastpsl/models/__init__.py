"""Backbones as sequences of blocks; checkpoints; weights in the files of our own and of other projects."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
