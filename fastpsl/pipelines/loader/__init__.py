"""Samples of a data set in an order, as batches, by threads."""

from typing import TYPE_CHECKING

from fastpsl.pipelines.exports import lazy_names

if TYPE_CHECKING:
    from fastpsl.pipelines.loader.annotated import AnnotatedBatch, AnnotatedLoader
    from fastpsl.pipelines.loader.loader import Loader

__all__ = ["AnnotatedBatch", "AnnotatedLoader", "Loader"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"AnnotatedBatch": "annotated", "AnnotatedLoader": "annotated", "Loader": "loader"},
)
