"""A folder of images as a data set of its own: the order and the labels of the beton that would be written of it."""

from pathlib import Path
from typing import final

from fastpsl.pipelines.data.image_folder import ImageFiles
from fastpsl.pipelines.sources.folder import image_folder


@final
class Folder(ImageFiles):
    """The images below `root`: an ImageFolder tree (a class per folder) or a flat folder without labels. ValueError where there is no image."""

    def __init__(self, root: str | Path) -> None:
        super().__init__(image_folder(root), Path(root), Path(root))
