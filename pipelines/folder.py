"""A folder of images as a data set of its own: not there yet."""

from pathlib import Path

from fastpsl.pipelines.rows import Data


def Folder(root: str | Path) -> Data:  # noqa: N802
    raise ValueError(f"{root}: is a folder; make a beton of it with `fastpsl beton write`")
