"""The choice of a source for SRC of `fastpsl data write`, by its name and content or by --format."""

import os
from collections.abc import Callable
from pathlib import Path

from fastpsl.files.leftovers import is_leftover
from fastpsl.files.paths import LIST_ENDINGS, require_existing
from fastpsl.files.remote.address import is_remote
from fastpsl.pipelines.data.classes import named_classes
from fastpsl.pipelines.sources.arrays import arrays
from fastpsl.pipelines.sources.files import SourceFile, source_files
from fastpsl.pipelines.sources.folder import image_folder
from fastpsl.pipelines.sources.listed import image_list, labelled_folder
from fastpsl.pipelines.sources.parquet import hugging_face, parquet_files
from fastpsl.pipelines.sources.published import published, published_name
from fastpsl.pipelines.sources.renumbered import Renumbered, renumbered
from fastpsl.pipelines.sources.source import Source
from fastpsl.pipelines.sources.tar import tar_source

_ENDINGS = {
    ".tar": "tar",
    ".tar.gz": "tar",
    ".tgz": "tar",
    ".tar.bz2": "tar",
    ".tar.xz": "tar",
    ".npz": "npz",
    ".parquet": "parquet",
    **dict.fromkeys(LIST_ENDINGS, "list"),
}
HUGGING_FACE = "hf:"
# What --classes may be besides data.
FOLDERS, NONE = "folders", "none"


def open_source(
    src: str,
    format: str = "auto",
    *,
    split: str | None = None,
    shard: tuple[int, int] = (0, 1),
    image_column: str | None = None,
    label_column: str | None = None,
    labels: str | None = None,
    classes: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Source:
    """Open `src` and count its images.

    Args:
        src: A path, a glob, or hf:NAME.
        format: auto, folder, list, tar, npz, parquet, cifar10, cifar100 or stl10.
        split: The part of a source with several.
        shard: (i, n) keeps the i-th of n runs of neighbours.
        image_column: The column of images, for parquet.
        label_column: The column of labels, for parquet.
        labels: A list with the labels of a folder's images.
        classes: Data or a list with the class names in the order of the labels. "folders" takes folders of
            any name as classes, "none" writes no labels. None for the source's own.
        on_progress: Called with (MB done, MB in all) while long files are counted.

    Raises:
        ValueError: The source is missing, of another kind or holds no image. The message is one line.
    """
    names = None if classes is None or classes in (FOLDERS, NONE) else named_classes(classes)
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
    source = _open(src, format, split, shard, image_column, label_column, labels, classes, on_progress)
    if classes == NONE:
        return Renumbered(source, None)
    return source if names is None else renumbered(src, source, names, str(classes))


def _open(
    src: str,
    format: str,
    split: str | None,
    shard: tuple[int, int],
    image_column: str | None,
    label_column: str | None,
    labels: str | None,
    classes: str | None,
    on_progress: Callable[[int, int], None] | None,
) -> Source:
    are_classes = classes in (FOLDERS, NONE)
    if split is not None and format in ("folder", "list", "tar"):
        raise ValueError(f"--split {split}: a {format} has no splits; give the {format} of that split as SRC")
    if format == "parquet":
        if src.startswith(HUGGING_FACE) or _is_saved(src):
            return hugging_face(src.removeprefix(HUGGING_FACE), split, shard, image_column, label_column)
        return parquet_files(_parquet_paths(src), split, shard, image_column, label_column)
    if image_column is not None or label_column is not None:
        raise ValueError(
            f"--image-column and --label-column are for parquet and hf:NAME; {src} is read as {format}, "
            "leave them out"
        )
    if format == "tar":
        return tar_source(_paths(src), shard, on_progress, are_classes)
    if format == "npz":
        return arrays(_one_path(src), split, shard)
    if format == "folder":
        if labels is not None:
            require_existing(labels, "a list with the labels of the folder's images")
            return labelled_folder(Path(src), Path(labels), shard)
        return image_folder(src, shard, are_classes=are_classes)
    if format == "list":
        return image_list(_one_path(src), shard)
    return published(_one_path(src), format, split, shard, on_progress)


def _format_of(src: str) -> str:
    if is_remote(src):
        return _format_of_files(src)
    if src.startswith(HUGGING_FACE) or _is_saved(src):
        return "parquet"
    if name := published_name(Path(src)):
        return name
    if os.path.isdir(src):
        return "parquet" if _parquet_in(src) else "folder"
    return _format_of_files(src)


def _format_of_files(src: str) -> str:
    formats = {_format_of_file(path) for path in _paths(src)}
    if len(formats) > 1:
        raise ValueError(
            f"{src}: files of several kinds ({', '.join(sorted(formats))}); give files of one kind"
        )
    return formats.pop()


def _is_saved(src: str) -> bool:
    """Return whether datasets' `save_to_disk` wrote this folder."""
    return any(os.path.isfile(os.path.join(src, name)) for name in ("state.json", "dataset_dict.json"))


def _parquet_in(folder: str) -> list[Path]:
    """Return the parquet files in a folder or in its data/, where the Hub keeps them."""
    places = (Path(folder), Path(folder, "data"))
    found = ([path for path in place.glob("*.parquet") if not is_leftover(path.name)] for place in places)
    return sorted(next((paths for paths in found if paths), []))


def _parquet_paths(src: str) -> list[SourceFile]:
    if not os.path.isdir(src):
        return _paths(src)
    if not (paths := _parquet_in(src)):
        raise ValueError(f"{src}: no .parquet file in it; give a folder of them, or what save_to_disk wrote")
    return list(paths)


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
