"""What SRC of `fastpsl beton write` is: told from its name and content, or by --format."""

import glob
import os
from collections.abc import Callable
from pathlib import Path

from fastpsl.pipelines.sources.folder import image_folder
from fastpsl.pipelines.sources.source import Source
from fastpsl.pipelines.sources.tar import tar_source

_TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def open_source(
    src: str,
    format: str = "auto",
    *,
    shard: tuple[int, int] = (0, 1),
    on_progress: Callable[[int, int], None] | None = None,
) -> Source:
    """`src` as images, counted. `format` is auto, folder or tar. `shard` (i, n) keeps the i-th of n runs of
    neighbours. Counting long files is told to `on_progress(MB done, MB in all)`. ValueError, one line, for
    what is missing, of another kind or holds no image."""
    if format == "auto":
        format = _format_of(src)
    if format == "tar":
        return tar_source(_paths(src), shard, on_progress)
    assert format == "folder", format
    return image_folder(src, shard)


def _format_of(src: str) -> str:
    if os.path.isdir(src):
        return "folder"
    for path in _paths(src):
        if not path.name.lower().endswith(_TAR_ENDINGS):
            raise ValueError(
                f"{path}: no folder and no file of a known kind ({', '.join(_TAR_ENDINGS)}); give one, or say --format"
            )
    return "tar"


def _paths(src: str) -> list[Path]:
    """The files that `src` names: one, or those that a glob finds."""
    if os.path.lexists(src) or not glob.has_magic(src):
        if not os.path.exists(src):
            raise ValueError(f"{src}: no such file or folder; give what is there, or a quoted glob")
        return [Path(src)]
    paths = [Path(path) for path in glob.glob(src)]
    if not paths:
        raise ValueError(f"{src}: no file matches; give a folder, a file, or a glob that finds files")
    return sorted(paths)
