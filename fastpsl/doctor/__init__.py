"""The diagnosis of a machine: times each part of a recipe, names the slowest and proposes changes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
