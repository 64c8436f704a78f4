"""ffcv's .beton files: read, written, checked; in shards too."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastpsl.pipelines.beton.encode import Target
    from fastpsl.pipelines.beton.reader import Beton
    from fastpsl.pipelines.beton.write import WriteReport, write_beton

__all__ = ["Beton", "Target", "WriteReport", "write_beton"]

_FILES = {"Beton": "reader", "Target": "encode", "WriteReport": "write", "write_beton": "write"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: no file of this package waits for what others import."""
    if name in _FILES:
        return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
