"""The loader: orders samples, prepares them in threads and yields batches."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
