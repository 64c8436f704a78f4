"""Samples to batches on the device: data sets, decoders, the loader and its views. Knows no task."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
