"""Samples to batches on the device: data sets, decoders, the loader and its views. Knows no task."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastpsl.pipelines.batch import Batch
    from fastpsl.pipelines.beton.reader import Beton
    from fastpsl.pipelines.data.dataset import Dataset
    from fastpsl.pipelines.data.open import open_data
    from fastpsl.pipelines.loader.loader import Loader
    from fastpsl.pipelines.sample.betons import sample_paths
    from fastpsl.pipelines.views import ViewSpec

__all__ = ["Batch", "Beton", "Dataset", "Loader", "ViewSpec", "open_data", "sample_paths"]

_FILES = {
    "Batch": "batch",
    "Beton": "beton.reader",
    "Dataset": "data.dataset",
    "Loader": "loader.loader",
    "ViewSpec": "views",
    "open_data": "data.open",
    "sample_paths": "sample.betons",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: no file of this package waits for what others import."""
    if name in _FILES:
        return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
