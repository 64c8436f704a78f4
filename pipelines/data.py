"""The data that a command line names: a folder of images, or betons."""

from pathlib import Path

from fastpsl.pipelines.beton import Beton
from fastpsl.pipelines.rows import Data


def open_data(source: str | Path) -> Data:
    """A folder of images as it is, else a beton or a glob of shards. ValueError where there is none such."""
    if not str(source):
        raise ValueError("the data's name is empty; give a beton, a glob of shards or a folder of images")
    if Path(source).is_dir():
        from fastpsl.pipelines.folder import Folder

        return Folder(source)
    return Beton(source)
