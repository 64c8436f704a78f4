"""Samples of a data set in an order, as batches, by threads."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastpsl.pipelines.loader.annotated import AnnotatedBatch, AnnotatedLoader
    from fastpsl.pipelines.loader.loader import Loader

__all__ = ["AnnotatedBatch", "AnnotatedLoader", "Loader"]

_FILES = {"AnnotatedBatch": "annotated", "AnnotatedLoader": "annotated", "Loader": "loader"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: no file of this package waits for what others import."""
    if name in _FILES:
        return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
