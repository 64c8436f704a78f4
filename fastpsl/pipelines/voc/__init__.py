"""PASCAL VOC's data, and SBD's masks: images with classes, boxes and masks."""

from typing import TYPE_CHECKING

from fastpsl.pipelines.exports import lazy_names

if TYPE_CHECKING:
    from fastpsl.pipelines.voc.annotations import read_objects
    from fastpsl.pipelines.voc.dataset import VOC
    from fastpsl.pipelines.voc.masks import read_mask

__all__ = ["VOC", "read_mask", "read_objects"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"VOC": "dataset", "read_mask": "masks", "read_objects": "annotations"},
)
