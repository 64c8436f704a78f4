"""The embedded sample: images that are drawn, not downloaded, as betons and in VOC's layout."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastpsl.pipelines.sample.betons import SamplePaths, sample_paths
    from fastpsl.pipelines.sample.voc import drawn_voc

__all__ = ["SamplePaths", "drawn_voc", "sample_paths"]

_FILES = {"SamplePaths": "betons", "drawn_voc": "voc", "sample_paths": "betons"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: no file of this package waits for what others import."""
    if name in _FILES:
        return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
