"""Samples to batches on the device: data sets, decoders, the loader and its views. Knows no task."""

from typing import TYPE_CHECKING

from fastpsl.pipelines.exports import lazy_names

if TYPE_CHECKING:
    from fastpsl.pipelines.batch import Batch
    from fastpsl.pipelines.beton.reader import Beton
    from fastpsl.pipelines.data.dataset import Dataset
    from fastpsl.pipelines.data.open import open_data
    from fastpsl.pipelines.loader.loader import Loader
    from fastpsl.pipelines.sample.betons import sample_paths
    from fastpsl.pipelines.views import ViewSpec

__all__ = ["Batch", "Beton", "Dataset", "Loader", "ViewSpec", "open_data", "sample_paths"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Batch": "batch",
        "Beton": "beton.reader",
        "Dataset": "data.dataset",
        "Loader": "loader.loader",
        "ViewSpec": "views",
        "open_data": "data.open",
        "sample_paths": "sample.betons",
    },
)
