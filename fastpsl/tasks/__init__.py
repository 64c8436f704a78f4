"""The pretext tasks, and classification by labels: a file each, or a folder where methods share parts."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
