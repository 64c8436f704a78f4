"""Checks that what a user names is there."""

import glob
import os
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from fastpsl.console.words import similar
from fastpsl.files.atomic import partial_path
from fastpsl.files.system_errors import raise_of_the_system

LIST_ENDINGS = (".json", ".csv", ".txt")  # of lists of images
# What may be given as data, for messages.
FORMS = "a folder of images, a .beton file, a quoted glob of those, or a list of images (.txt, .csv, .json)"
WEIGHTS = "a run's folder, a checkpoint, a file of weights, timm/NAME, or an address such as hf://ORG/NAME"
_MOST_NEIGHBOURS = 1000  # a folder of a million images is not searched for a similar name


def require_path(name: str, value: object, allowed: str) -> None:
    """Check that what a program gives is a path."""
    if not isinstance(value, str | os.PathLike):
        raise ValueError(  # noqa: TRY004
            f"{name} is {type(value).__name__}, not a path: give the path of {allowed}"
        )


def require_existing(source: str | Path, allowed: str) -> None:
    """Check that a name or a glob names anything."""
    if not str(source):
        raise ValueError(f"the data's name is empty; give {allowed}")
    try:
        os.stat(source)
        return
    except (OSError, ValueError) as error:  # ValueError: a NUL within the name
        raise_of_the_system(source, error)
    is_link = os.path.lexists(source)
    if glob.has_magic(str(source)) and not is_link:
        if not named_files(source):
            _require_listed(Path(source))
            raise ValueError(f"{source}: no file matches; give {allowed}")
        return
    hint = _hint(Path(source))
    if is_link:
        raise ValueError(f"{source}: is a link to nothing; {hint}give {allowed}")
    partial = partial_path(Path(source))
    if os.path.exists(partial):
        raise ValueError(
            f"{source}: is not whole, only {partial.name} is there; wait until it is written, or give the "
            f"command again that was interrupted"
        )
    raise ValueError(f"{source}: no such file or folder; {hint}give {allowed}")


def named_files(source: str | Path) -> list[Path]:
    """Return the files that a path or a glob names, sorted; a name as it is written precedes a pattern."""
    if os.path.exists(source):
        return [Path(source)]
    return sorted(map(Path, glob.glob(with_literal_folder(str(source), os.path.isdir))))


def with_literal_folder(pattern: str, is_folder: Callable[[str], bool]) -> str:
    """Return a glob whose longest beginning with brackets that is a folder is no pattern."""
    parts = pattern.split("/")
    for end in range(len(parts) - 1, 0, -1):
        folder = "/".join(parts[:end])
        if "[" in folder and is_folder(folder):
            return "/".join([glob.escape(folder), *parts[end:]])
    return pattern


def _require_listed(pattern: Path) -> None:
    """Raise ValueError if a glob's first folder cannot be listed, which `glob` takes for an empty one."""
    folder = next(path for path in pattern.absolute().parents if not glob.has_magic(str(path)))
    try:
        os.listdir(folder)
    except OSError as error:
        raise_of_the_system(folder, error)


def _hint(path: Path) -> str:
    """Return "did you mean …? " with a path that exists and differs in one name, or nothing without one."""
    missing = path
    while not os.path.exists(missing.parent):
        missing = missing.parent
    with suppress(OSError), os.scandir(missing.parent) as entries:
        names = [entry.name for entry in islice(entries, _MOST_NEIGHBOURS) if entry.name[0] != "."]
        for name in similar(missing.name, names):
            found = missing.parent / name / path.relative_to(missing)
            return f"did you mean {found}? " if found.exists() else ""
    return ""


def require_folder(out: Path) -> None:
    """Raise ValueError unless --out is a folder that can be written, or that can be made; make nothing."""
    place = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if not place.is_dir():
        which = out if place == out else f"{out}: {place}"
        raise ValueError(f"--out {which} is a file: give a folder, or a path that does not exist yet")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"--out {out}: {place} cannot be written; choose a folder that can be written")
