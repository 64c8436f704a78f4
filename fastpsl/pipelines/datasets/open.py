"""A data set from what a user names: the kind of source, its classes, and the data set itself."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastpsl.console.words import pasted, warn
from fastpsl.files.paths import FORMS, LIST_ENDINGS, named_files, require_existing
from fastpsl.files.remote.address import check_address, is_remote, remote_objects
from fastpsl.files.remote.cache import Cache
from fastpsl.pipelines.beton.reader import Beton
from fastpsl.pipelines.beton.shard import HEADER, VERSION
from fastpsl.pipelines.beton.sidecar import shard_paths
from fastpsl.pipelines.interface.dataset import Dataset, all_labelled
from fastpsl.pipelines.interface.reading import PLAIN, Reading
from fastpsl.pipelines.interface.source import Relabelled, Source, is_image, renumbered
from fastpsl.pipelines.readers.arrays import arrays
from fastpsl.pipelines.readers.dataset_files import dataset_files
from fastpsl.pipelines.readers.folder import (
    SourceFile,
    folder_classes,
    image_folder,
    image_names,
    open_file,
    source_files,
)
from fastpsl.pipelines.readers.listed import image_list, labelled_folder, read_list
from fastpsl.pipelines.readers.parquet import hugging_face, parquet_files, parquet_in
from fastpsl.pipelines.readers.published import published, published_name
from fastpsl.pipelines.readers.tar import tar_source
from fastpsl.pipelines.readers.text_lists import names_images, read_classes

if TYPE_CHECKING:
    from fastpsl.pipelines.datasets.open_folder import ImageFiles


class Classes(NamedTuple):
    """The names of classes, or None, and their number, which is 0 without labels."""

    class_names: list[str] | None
    num_classes: int


def classes_of(source: str | Path, cache_dir: Path | None = None, cache_gb: float | None = None) -> Classes:
    """Return the classes of a folder of images, a list of images, or else a dataset file or a glob of shards.

    The arguments are those of `open_data`.
    """
    path, cache = Path(source), None
    if is_remote(source):
        cache = Cache(cache_dir, cache_gb)
    else:
        require_existing(source, FORMS)
        if path.is_dir():
            names = folder_classes(path)
            return Classes(names, len(names or ()))
        if _is_list(source):
            listed = read_list(path)
            names = listed.class_names
            return Classes(names, len(names) if names else max(listed.labels) + 1)
    with Beton(source, cache) as beton:
        return Classes(beton.class_names, beton.num_classes)


class Glance(NamedTuple):
    """The contents of data, as far as names and tables tell."""

    num_samples: int
    names: Sequence[str]  # as `Dataset.names` has them; none if the samples reach the given number
    num_classes: int  # 0 without labels


def glance(
    source: str | Path, at_most: int | None, cache_dir: Path | None = None, cache_gb: float | None = None
) -> Glance:
    """Count the samples that `open_data` would open, up to a number, without looking at an image.

    Args:
        source: The data, as in `open_data`.
        at_most: Where to stop, because listing millions of files takes long; None to count all.
        cache_dir: As in `open_data`.
        cache_gb: As in `open_data`.

    Raises:
        ValueError: The data cannot be read, or there are none.
    """
    check_form(source)
    path = Path(source)
    if not is_remote(source) and path.is_dir():
        names = list(islice(image_names(path), at_most))
        if not names:
            image_folder(path)  # says what is there instead
        return Glance(len(names), names, len(folder_classes(path) or ()))
    if not is_remote(source) and _is_list(source):
        listed = read_list(path)
        num_classes = 0 if min(listed.labels) < 0 else max(listed.labels) + 1
        return Glance(len(listed.paths), listed.paths, num_classes)
    if at_most is not None and num_in_headers(source, at_most) >= at_most:
        return Glance(at_most, (), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `open_data` gives them
        with Beton(source, Cache(cache_dir, cache_gb) if is_remote(source) else None) as beton:
            num_classes = beton.num_classes if all_labelled(beton) else 0
            return Glance(beton.num_samples, list(beton.names()), num_classes)


def num_in_headers(source: str | Path, at_most: int) -> int:
    """Return the number of samples of dataset files by their headers, up to about `at_most`."""
    num = 0
    for file in remote_objects(str(source)) if is_remote(source) else shard_paths(source):
        with open_file(file) as opened:
            head = opened.read(HEADER.itemsize)
        num += int(np.frombuffer(head, HEADER)[0]["num_samples"]) if len(head) == HEADER.itemsize else 0
        if num >= at_most:
            break
    return num


def named_classes(source: str) -> list[str]:
    """Return the class names of data as in `classes_of`, or of a list with a class a line."""
    path = Path(source)
    if path.is_file() and path.suffix.lower() == ".txt" and not names_images(path):
        return read_classes(path)
    if names := classes_of(source).class_names:
        return names
    raise ValueError(
        f"{source}: has no class names; give a folder per class, or a list with a class per line"
    )


_ENDINGS = {
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"), "tar"),
    ".npz": "npz",
    ".parquet": "parquet",
    ".beton": "beton",
    **dict.fromkeys(LIST_ENDINGS, "list"),
}
HUGGING_FACE = "hf:"
# The words that --classes takes besides data.
FOLDERS, NONE = "folders", "none"


def open_source(
    src: str, format: str = "auto", *, split: str | None = None, shard: tuple[int, int] = (0, 1),
    image_column: str | None = None, label_column: str | None = None, labels: str | None = None,
    classes: str | None = None, on_progress: Callable[[int, int], None] | None = None,
) -> Source:  # fmt: skip
    """Open `src`, a path, a glob or hf:NAME, and count its images.

    `shard` (i, n) keeps the i-th of n runs of neighbours. `labels` is a list with the labels of a folder's
    images. `classes` is data or a list with the class names in the order of the labels. Or it is "folders",
    which takes folders of any name as classes, or "none", which gives no labels. `on_progress` is called with
    (MB done, MB in all) while long files are counted.
    """
    are_classes = classes in (FOLDERS, NONE)
    names = None if classes is None or are_classes else named_classes(classes)
    if format == "auto":
        format = _format_of(src)
    if is_remote(src) and format not in ("tar", "parquet"):
        raise ValueError(
            f"{src}: a {format} is read from this machine alone; copy it here, or give tars or parquet files"
        )
    if labels is not None and format != "folder":
        raise ValueError(
            f"--labels {labels}: it is for a folder, and {src} is read as {format}; leave it out"
        )
    if classes == FOLDERS and (format not in ("folder", "tar") or labels is not None):
        raise ValueError(f"--classes {FOLDERS}: it is for folders and tars of class folders; leave it out")
    if split is not None and format in ("folder", "list", "tar", "beton"):
        raise ValueError(f"--split {split}: a {format} has no splits; give the {format} of that split as SRC")
    if format != "parquet" and (image_column is not None or label_column is not None):
        raise ValueError(
            f"--image-column and --label-column are for parquet and hf:NAME; {src} is read as {format}, "
            "leave them out"
        )
    source: Source
    if format == "parquet" and (src.startswith(HUGGING_FACE) or _is_saved(src)):
        source = hugging_face(src.removeprefix(HUGGING_FACE), split, shard, image_column, label_column)
    elif format == "parquet":
        paths = list[SourceFile](parquet_in(src)) if os.path.isdir(src) else _paths(src)
        if not paths:
            raise ValueError(
                f"{src}: no .parquet file in it; give a folder of them, or what save_to_disk wrote"
            )
        source = parquet_files(src, paths, split, shard, image_column, label_column)
    elif format == "tar":
        source = tar_source(_paths(src), shard, on_progress, are_classes)
    elif format == "npz":
        source = arrays(_one_path(src), split, shard)
    elif format == "folder" and labels is not None:
        require_existing(labels, "a list with the labels of the folder's images")
        source = labelled_folder(Path(src), Path(labels), shard)
    elif format == "folder":
        source = image_folder(src, shard, are_classes=are_classes)
    elif format == "beton":
        source = dataset_files(src, shard)
    elif format == "list":
        source = image_list(_one_path(src), shard)
    else:
        source = published(_one_path(src), format, split, shard, on_progress)
    if classes == NONE:
        return Relabelled(source, None)
    return source if names is None else renumbered(src, source, names, str(classes))


def _format_of(src: str) -> str:
    if is_remote(src):
        return _format_of_files(src)
    if src.startswith(HUGGING_FACE) or _is_saved(src):
        return "parquet"
    if name := published_name(Path(src)):
        return name
    if os.path.isdir(src):
        return "parquet" if parquet_in(src) else "folder"
    return _format_of_files(src)


def _format_of_files(src: str) -> str:
    paths = _paths(src)
    refuse_images(src, paths)
    formats = set(map(_format_of_file, paths))
    if len(formats) > 1:
        raise ValueError(
            f"{src}: files of several kinds ({', '.join(sorted(formats))}); give files of one kind"
        )
    return formats.pop()


def _is_saved(src: str) -> bool:
    """Return whether datasets' `save_to_disk` wrote this folder."""
    return any(os.path.isfile(os.path.join(src, name)) for name in ("state.json", "dataset_dict.json"))


def _format_of_file(path: SourceFile) -> str:
    for ending, format in _ENDINGS.items():
        if path.name.lower().endswith(ending):
            return format
    raise ValueError(
        f"{path}: neither a folder nor a file of a known kind ({', '.join(_ENDINGS)}); "
        "give one, or name its kind by --format"
    )


def _paths(src: str) -> list[SourceFile]:
    """Return the files that `src` names: one, or the matches of a glob."""
    return source_files(
        src,
        "a folder of images, a quoted glob, or a file of a known kind "
        "(https://fastpsl.github.io/fastpsl/how_to/pack_a_dataset.html)",
    )


def _one_path(src: str) -> Path:
    paths = _paths(src)
    if len(paths) > 1:
        raise ValueError(f"{src}: {len(paths)} files match, and one is wanted; write them one by one")
    (path,) = paths
    assert isinstance(path, Path)  # others were refused
    return path


def open_data(
    source: str | Path,
    cache_dir: Path | None = None,
    cache_gb: float | None = None,
    reading: Reading = PLAIN,
    reading_of: str = "",
) -> Dataset:
    """Open a folder of images, a list of images, or else a dataset file or a glob of shards.

    A warning tells what is left out, or was when a dataset file was written.

    Args:
        source: The path, the glob, or the address of dataset files that live elsewhere.
        cache_dir: For an address, the cache's folder; see `Cache`.
        cache_gb: For an address, the bound of the cache.
        reading: The range and the bands of its images; a dataset file was written with its own.
        reading_of: Whose reading it is, such as OF_WEIGHTS; "" for one that the user gives.

    Raises:
        ValueError: The name is empty, or nothing of that kind is there. Or the user gives another reading
            than a dataset file was written with.
    """
    check_form(source)
    data = _open(source, cache_dir, cache_gb, reading)
    if isinstance(data, Beton):
        try:
            data.reading = _as_written(source, data, reading, reading_of)
        except BaseException:
            data.close()
            raise
    if line := data.left_out.line():
        when = " when it was written" if isinstance(data, Beton) else ""
        warnings.warn(f"{source}: left out{when}: {line}", stacklevel=2)
    return data


OF_WEIGHTS = "the weights' images"


def _as_written(source: str | Path, data: Beton, reading: Reading, reading_of: str) -> Reading:
    """Return the reading that a dataset file was written with, which should be the given one."""
    is_measured = reading.measures and data.reading.range and reading.bands in ((), data.reading.bands)
    if reading in (PLAIN, data.reading) or is_measured:
        return data.reading
    if not data.tells_reading and not reading.measures:
        return reading
    wanted = reading.in_words() or "--range auto"
    words = data.reading.in_words()
    written = f"with {words}" if words else "without --range and --bands"
    if reading_of:
        warn(f"{source}: was written {written}, {reading_of} had {wanted}", stacklevel=3)
        return data.reading
    raise ValueError(
        f"{source}: was written {written}, so {wanted} comes too late; leave it out, or write it again"
    )


def _open(
    source: str | Path, cache_dir: Path | None, cache_gb: float | None, reading: Reading
) -> Beton | ImageFiles:
    if is_remote(source):
        return Beton(source, Cache(cache_dir, cache_gb))
    is_folder = Path(source).is_dir()
    if not is_folder and not _is_list(source):
        return Beton(source)
    from fastpsl.pipelines.datasets.open_folder import Folder, Listed

    return Folder(source, reading) if is_folder else Listed(source, reading)


def check_form(source: str | Path) -> None:
    """Check what `open_data` gets, by names and first bytes alone; of an address, by its form."""
    if is_remote(source):
        return check_address(str(source))
    require_existing(source, FORMS)
    path = Path(source)
    refuse_images(source, named_files(source))
    if path.is_dir():
        folder_classes(path)  # refuses those that are no classes
    elif path.is_file() and path.suffix != ".beton" and not (_is_list(source) or _begins_as_beton(path)):
        raise ValueError(f"{source}: is no dataset file, and by its name no list of images; give {FORMS}")


def refuse_images(source: str | Path, named: Sequence[SourceFile]) -> None:
    """Raise ValueError, with the folder to give, if `source` is an image, or a glob of images or folders."""
    if os.path.isdir(source):
        return
    images = [file for file in named if isinstance(file, Path) and (is_image(file.name) or file.is_dir())]
    if images:
        folder = os.path.commonpath([file.parent for file in images])
        raise ValueError(
            f"{source}: images are read by their folder, {pasted(folder)}; a glob is of packed files"
        )


def _is_list(source: str | Path) -> bool:
    return str(source).lower().endswith(LIST_ENDINGS)


def _begins_as_beton(path: Path) -> bool:
    """Return whether a file begins with FFCV's version; True if it cannot be read, which `Beton` reports."""
    try:
        with open(path, "rb") as file:
            return file.read(2) == VERSION.to_bytes(2, "little")
    except OSError:
        return True
