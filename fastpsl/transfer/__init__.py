"""What a learned backbone is worth elsewhere: VOC detection, segmentation, classification, SVMs; few-shot."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
