"""Self-supervised vision pre-training at the speed of the GPU: PSL, UIC and SSL++ on one data path."""

import sys

import lazy_loader

from fastpsl.console.interrupts import GuardedImports
from fastpsl.console.offered import offer_only_all
from fastpsl.console.terminal import warn_about_low_limit
from fastpsl.files.caches import choose_caches

__version__ = "0.1.0"

choose_caches()
warn_about_low_limit()
sys.meta_path.insert(0, GuardedImports(__name__))

# import fastpsl must not wait for torch
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
offer_only_all(__name__)
