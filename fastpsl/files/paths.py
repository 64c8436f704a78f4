"""Checks that what a user names is there, and the reader of JSON lines."""

import difflib
import glob
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from fastpsl.files.atomic import partial_path

LIST_ENDINGS = (".json", ".csv", ".txt")  # of lists of images
# What may be given as data, for messages.
FORMS = "a folder of images, a .beton file, a quoted glob of them, or a list of images (.txt, .csv, .json)"
WEIGHTS = "a checkpoint, a run's folder, or a file of weights"
_MOST_NEIGHBOURS = 1000  # a folder of a million images is not searched for a similar name


def require_existing(source: str | Path, allowed: str) -> None:
    """Check that a name or a glob names anything."""
    if not str(source):
        raise ValueError(f"the data's name is empty; give {allowed}")
    if os.path.exists(source):
        return
    is_link = os.path.lexists(source)
    if glob.has_magic(str(source)) and not is_link:
        if not any(True for _ in glob.iglob(str(source))):
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


def _hint(path: Path) -> str:
    """Return "did you mean …? " with a path that exists and differs in one name, or nothing without one."""
    missing = path
    while not os.path.exists(missing.parent):
        missing = missing.parent
    with suppress(OSError), os.scandir(missing.parent) as entries:
        names = [entry.name for entry in islice(entries, _MOST_NEIGHBOURS) if entry.name[0] != "."]
        for name in difflib.get_close_matches(missing.name, names, n=1):
            found = missing.parent / name / path.relative_to(missing)
            return f"did you mean {found}? " if found.exists() else ""
    return ""


_MAX_LINE_BYTES = 1 << 20


class Line(NamedTuple):
    """One line of a file."""

    row: dict[str, Any]  # the object; it has at least "run_step", an integer, and "stage", a name
    end: int  # the offset in bytes at which the line ends


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a file up to the first that cannot be read; nothing where the file does not exist.

    A warning counts the lines that are lost, unless it is only the half line that a killed run leaves.
    """
    if not path.exists():
        return
    end = 0
    with open(path, "rb") as file:
        for number, text in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b""), 1):
            row = _row(text)
            if row is None:
                num_lost = 1 + sum(1 for _ in iter(lambda: file.readline(_MAX_LINE_BYTES), b""))
                if num_lost > 1 or text.endswith(b"\n") or len(text) == _MAX_LINE_BYTES:
                    warnings.warn(
                        f"{path}: line {number} cannot be read; "
                        f"{num_lost:,} lines from there to the end are lost",
                        stacklevel=2,
                    )
                return
            end += len(text)
            yield Line(row, end)


def _row(text: bytes) -> dict[str, Any] | None:
    if not text.endswith(b"\n"):
        return None
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    sound = isinstance(row, dict) and type(row.get("run_step")) is int and isinstance(row.get("stage"), str)
    return row if sound else None


def require_folder(out: Path) -> None:
    """Raise ValueError unless --out is a folder that can be written, or that can be made; make nothing."""
    place = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if not place.is_dir():
        which = out if place == out else f"{out}: {place}"
        raise ValueError(f"--out {which} is a file: give a folder, or a path that does not exist yet")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"--out {out}: {place} cannot be written; choose a folder that can be written")
