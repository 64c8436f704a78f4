"""The path from stored samples to batches on the device: data sets, decoders, views and the loader."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
