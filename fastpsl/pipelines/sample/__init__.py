"""The embedded sample: images that are drawn, not downloaded, as betons and in VOC's layout."""

from typing import TYPE_CHECKING

from fastpsl.pipelines.exports import lazy_names

if TYPE_CHECKING:
    from fastpsl.pipelines.sample.betons import SamplePaths, sample_paths
    from fastpsl.pipelines.sample.voc import drawn_voc

__all__ = ["SamplePaths", "drawn_voc", "sample_paths"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"SamplePaths": "betons", "drawn_voc": "voc", "sample_paths": "betons"},
)
