"""PASCAL VOC's data, and SBD's masks: images with classes, boxes and masks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastpsl.pipelines.voc.annotations import read_objects
    from fastpsl.pipelines.voc.dataset import VOC
    from fastpsl.pipelines.voc.masks import read_mask

__all__ = ["VOC", "read_mask", "read_objects"]

_FILES = {"VOC": "dataset", "read_mask": "masks", "read_objects": "annotations"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: no file of this package waits for what others import."""
    if name in _FILES:
        return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
