"""Self-supervised vision pre-training at the speed of the GPU: PSL, UIC and SSL++ on one data path."""

import lazy_loader

from fastpsl.engine.address_space import warn_about_low_limit
from fastpsl.pipelines.files.caches import choose_caches

__version__ = "0.1.0"

choose_caches()
warn_about_low_limit()

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(
    __name__, __file__
)  # import fastpsl must not wait for torch
