"""The pretext tasks, and classification by labels: a file each, or a folder where methods share parts."""

import lazy_loader

from fastpsl.console.offered import offer_only_all

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
offer_only_all(__name__)
