"""Self-supervised vision pre-training at the speed of the GPU: PSL, UIC and SSL++ on one data path."""

from typing import Any

import lazy_loader

from fastpsl.engine.address_space import warn_about_low_limit
from fastpsl.engine.interrupts import imports_undisturbed
from fastpsl.pipelines.files.caches import choose_caches

__version__ = "0.1.0"

choose_caches()
warn_about_low_limit()

# import fastpsl must not wait for torch
_import_name, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    with imports_undisturbed():
        return _import_name(name)
