"""A list of images as a data set of its own: the order and the labels of the beton that would be written of it."""

from pathlib import Path
from typing import final

from fastpsl.pipelines.data.image_folder import ImageFiles
from fastpsl.pipelines.sources.listed import image_list


@final
class Listed(ImageFiles):
    """The images that the file `path` names (`sources.listed.image_list`), with its labels. ValueError where one is absent."""

    def __init__(self, path: str | Path) -> None:
        files = image_list(path)
        super().__init__(files, Path(path), files.root)
