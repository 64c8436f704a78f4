"""What a data set is, and those that are no betons: folders and lists of images, subsets of any."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastpsl.pipelines.data.dataset import Dataset, SampleTable
    from fastpsl.pipelines.data.image_folder import Folder, Listed
    from fastpsl.pipelines.data.open import open_data
    from fastpsl.pipelines.data.subset import Subset

__all__ = ["Dataset", "Folder", "Listed", "SampleTable", "Subset", "open_data"]

_FILES = {
    "Dataset": "dataset",
    "Folder": "image_folder",
    "Listed": "image_folder",
    "SampleTable": "dataset",
    "Subset": "subset",
    "open_data": "open",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: no file of this package waits for what others import."""
    if name in _FILES:
        return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
