"""Names of folders that are no classes, and the search for a list with the classes."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from fastpsl.files.leftovers import is_leftover
from fastpsl.pipelines.sources.csv_lists import first_entry
from fastpsl.pipelines.sources.lines import open_text

# Names in lower case.
PARTS = ("train", "val", "valid", "validation", "test")
WITHOUT_CLASSES = ("images", "image", "imgs", "img", "jpegs", "jpeg", "jpegimages", "photos", "pictures")
_MAX_LINE = 4096


def parts_error(root: Path, parts: Sequence[str]) -> ValueError:
    """Build the error of a folder whose folders are the parts of a data set.

    Args:
        root: The folder.
        parts: Their names.
    """
    by_name = {name.lower(): root / name for name in parts}
    first = by_name.get("train", root / parts[0])
    second = next((path for name, path in by_name.items() if name != "train" and path != first), None)
    training = f"--data {_quoted(first)}" + (f" --val {_quoted(second)}" if second else "")
    return ValueError(
        f"{root}: holds parts of a data set ({', '.join(parts)}), not classes: write each alone, "
        f"as in `fastpsl data write {_quoted(first)} {first.name}.beton`, or train with {training}; "
        f"`fastpsl data write {_quoted(root)} OUT --classes folders` takes them as classes"
    )


def tar_parts_error(name: str, parts: Sequence[str]) -> ValueError:
    """Build the error of tars whose folders are the parts of a data set, as in `parts_error`."""
    return ValueError(
        f"{name}: holds parts of a data set ({', '.join(parts)}), not classes: make a tar of each, "
        "or unpack it and write each folder alone; --classes folders takes them as classes"
    )


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def list_beside(root: Path, folder: str) -> Path | None:
    """Return a list in `root` that names a label of an image in `root`/`folder`, or None."""
    for name in sorted(os.listdir(root)):
        path = root / name
        if not name.lower().endswith((".txt", ".csv")) or is_leftover(name) or not path.is_file():
            continue
        with open_text(path) as file:
            is_binary = len(file.readline(_MAX_LINE)) == _MAX_LINE
        try:
            entry = None if is_binary else first_entry(path)
        except ValueError:  # a text that is no list
            continue
        places = (root, root / folder) if entry and entry.label is not None else ()
        if any(entry and os.path.isfile(os.path.join(place, entry.path)) for place in places):
            return path
    return None
