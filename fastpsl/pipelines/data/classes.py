"""The classes that data has, read without looking at its images."""

from pathlib import Path
from typing import NamedTuple

from fastpsl.files.paths import FORMS, LIST_ENDINGS, require_existing
from fastpsl.files.remote.address import is_remote
from fastpsl.files.remote.cache import Cache
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.sources.csv_lists import names_images
from fastpsl.pipelines.sources.folder import folder_classes
from fastpsl.pipelines.sources.lines import read_classes
from fastpsl.pipelines.sources.listed import read_list


class Classes(NamedTuple):
    """The names of classes, or None, and their number, which is 0 without labels."""

    class_names: list[str] | None
    num_classes: int


def classes_of(source: str | Path, cache_dir: Path | None = None, cache_gb: float | None = None) -> Classes:
    """Return the classes of a folder of images, a list of images, or else a dataset file or a glob of shards.

    Args:
        source: The data; see `open_data`.
        cache_dir: As for `open_data`.
        cache_gb: As for `open_data`.

    Raises:
        ValueError: It is not there, or cannot be read.
    """
    if is_remote(source):
        with Beton(source, Cache(cache_dir, cache_gb)) as beton:
            return Classes(beton.class_names, beton.num_classes)
    require_existing(source, FORMS)
    path = Path(source)
    if path.is_dir():
        names = folder_classes(path)
        return Classes(names, len(names or ()))
    if str(source).lower().endswith(LIST_ENDINGS):
        listed = read_list(path)
        names = listed.class_names
        return Classes(names, len(names) if names else max(listed.labels) + 1)
    with Beton(source) as beton:
        return Classes(beton.class_names, beton.num_classes)


def named_classes(source: str) -> list[str]:
    """Return the class names of data as in `classes_of`, or of a list with a class a line.

    Raises:
        ValueError: It is not there, cannot be read, or has no class names.
    """
    path = Path(source)
    if path.is_file() and path.suffix.lower() == ".txt" and not names_images(path):
        return read_classes(path)
    if names := classes_of(source).class_names:
        return names
    raise ValueError(
        f"{source}: has no class names; give a folder per class, or a list with a class per line"
    )
