"""The data that a command line names: a folder or a list of images, or dataset files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from fastpsl.files.paths import FORMS, LIST_ENDINGS, require_existing
from fastpsl.files.remote.address import check_address, is_remote
from fastpsl.files.remote.cache import Cache
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.shard import VERSION
from fastpsl.pipelines.data.dataset import Dataset

if TYPE_CHECKING:
    from fastpsl.pipelines.data.image_files import ImageFiles


def open_data(source: str | Path, cache_dir: Path | None = None, cache_gb: float | None = None) -> Dataset:
    """Open a folder of images, a list of images, or else a dataset file or a glob of shards.

    A warning tells what is left out, or was when a dataset file was written.

    Args:
        source: The path, the glob, or the address of dataset files that live elsewhere.
        cache_dir: For an address, the cache's folder; see `Cache`.
        cache_gb: For an address, the bound of the cache.

    Raises:
        ValueError: The name is empty, or nothing of that kind is there.
    """
    check_form(source)
    data = _open(source, cache_dir, cache_gb)
    if line := data.left_out.line():
        when = " when it was written" if isinstance(data, Beton) else ""
        warnings.warn(f"{source}: left out{when}: {line}", stacklevel=2)
    return data


def _open(source: str | Path, cache_dir: Path | None, cache_gb: float | None) -> Beton | ImageFiles:
    if is_remote(source):
        return Beton(source, Cache(cache_dir, cache_gb))
    is_folder = Path(source).is_dir()
    if not is_folder and not _is_list(source):
        return Beton(source)
    from fastpsl.pipelines.data.image_files import Folder, Listed

    return Folder(source) if is_folder else Listed(source)


def check_form(source: str | Path) -> None:
    """Check what `open_data` gets, by names and first bytes alone; of an address, by its form.

    Raises:
        ValueError: Nothing is there. Or a file is neither a dataset file nor a list. Or the folders of a
            folder are no classes, such as train and val.
    """
    if is_remote(source):
        return check_address(str(source))
    require_existing(source, FORMS)
    path = Path(source)
    if path.is_dir():
        from fastpsl.pipelines.sources.folder import folder_classes  # with Pillow, slow to import

        folder_classes(path)  # refuses those that are no classes
    elif path.is_file() and path.suffix != ".beton" and not (_is_list(source) or _begins_as_beton(path)):
        raise ValueError(f"{source}: is no dataset file, and by its name no list of images; give {FORMS}")


def _is_list(source: str | Path) -> bool:
    return str(source).lower().endswith(LIST_ENDINGS)


def _begins_as_beton(path: Path) -> bool:
    """Return whether a file begins with FFCV's version; True if it cannot be read, which `Beton` reports."""
    try:
        with open(path, "rb") as file:
            return file.read(2) == VERSION.to_bytes(2, "little")
    except OSError:
        return True
