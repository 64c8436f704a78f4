"""Self-supervised vision pre-training at the speed of the GPU: PSL, UIC and SSL++ on one data path."""

from typing import TYPE_CHECKING, Any

from fastpsl.engine.address_space import say_low_limit
from fastpsl.pipelines.files.caches import choose_caches

if TYPE_CHECKING:
    from fastpsl.dataloader import loader as loader

__version__ = "0.1.0"

choose_caches()
say_low_limit()


def __getattr__(name: str) -> Any:
    """`fastpsl.loader`, imported when it is asked for: `import fastpsl` shall not wait for torch."""
    if name == "loader":
        from fastpsl.dataloader import loader

        return loader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
