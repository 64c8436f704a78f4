"""The data that a command line names: a folder or a list of images, or betons."""

from pathlib import Path

from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.data.image_files import Folder, Listed
from fastpsl.pipelines.sources.listed import ENDINGS


def open_data(source: str | Path) -> Dataset:
    """Open a folder of images, a list of images, or else a beton or a glob of shards.

    Raises:
        ValueError: The name is empty, or nothing of that kind is there.
    """
    if not str(source):
        raise ValueError(
            "the data's name is empty; give a beton, a glob of shards, a folder of images or a list of them"
        )
    if Path(source).is_dir():
        return Folder(source)
    if str(source).lower().endswith(ENDINGS):
        return Listed(source)
    return Beton(source)
