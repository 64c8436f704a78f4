"""Where images come from when a beton is written."""

from fastpsl.pipelines.sources.choose import open_source
from fastpsl.pipelines.sources.folder import ImageFolder, image_folder
from fastpsl.pipelines.sources.source import EXTENSIONS, Sample, Source

__all__ = ["EXTENSIONS", "ImageFolder", "Sample", "Source", "image_folder", "open_source"]
