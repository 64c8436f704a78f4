"""Plain text lists: one image per line, with a class number or name or without, or one class per line."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from fastpsl.files.leftovers import is_in_leftovers
from fastpsl.pipelines.beton.shard import MAX_LABEL
from fastpsl.pipelines.sources.labels import as_label, is_number
from fastpsl.pipelines.sources.source import EXTENSIONS, has_image_ending
from fastpsl.pipelines.sources.tally import LEFTOVERS, Tally

_PATH = re.compile(rf"(.*(?:{'|'.join(map(re.escape, EXTENSIONS))}))(\s+)([^\s,;].*)", re.IGNORECASE)
_BOX = re.compile(r"[0-9]+(\t[0-9]+){3}")  # Tiny-ImageNet's val_annotations.txt has one after the class
_KINDS = {type(None): "no label", int: "a number", str: "a name"}
# Searched beside a list and beside its folder: the layouts of miniImageNet's usual archive, and of
# Places205's, which contains the folders of its authors.
BELOW = ("", "images", "images256", "data/vision/torralba/deeplearning/images256")


class Names(NamedTuple):
    """The contents of a list: paths, a label each (-1 for none), and the class names where it has them."""

    paths: list[str]
    labels: list[int]
    class_names: list[str] | None
    left_out: Tally


class Entry(NamedTuple):
    """An image in a list: its path, its label as text or None, and the line for messages."""

    path: str
    label: str | None
    number: int  # of the line
    line: str


def open_text(path: Path) -> IO[str]:
    """Open a list as text; names that are no UTF-8 pass unchanged."""
    return open(path, encoding="utf-8-sig", errors="surrogateescape", newline="")


def names_of(path: Path, entries: Iterable[Entry]) -> Names:
    """Return the images of a list, without leftovers of other programs, and number the classes by name.

    Args:
        path: The list, for messages.
        entries: The images.

    Raises:
        ValueError: A label is of another kind than those before, or no class number.
    """
    paths, labels, left_out = list[str](), list[int | str | None](), Tally()
    kind: type | None = None
    for entry in entries:
        if is_in_leftovers(entry.path):
            left_out.add(LEFTOVERS, entry.path)
            continue
        label = None if entry.label is None else _label(path, entry)
        if label != -1:
            kind = kind or type(label)
            if type(label) is not kind:
                raise ValueError(
                    f"{path}: line {entry.number}, {shorten(entry.line)}, has {_KINDS[type(label)]} beside "
                    f"the path, and an image before has {_KINDS[kind]}; "
                    "give all images a number, all a name, or none a label"
                )
        paths.append(os.path.normpath(entry.path))
        labels.append(label)
    return numbered(paths, labels)._replace(left_out=left_out)


def _label(path: Path, entry: Entry) -> int | str:
    label = as_label(entry.label)
    if label is None or (isinstance(label, int) and not -1 <= label <= MAX_LABEL):
        raise ValueError(
            f"{path}: line {entry.number}, {shorten(entry.line)}: the label is no integer from -1 "
            f"(none) to {MAX_LABEL}; number the classes so, or name them"
        )
    return label


def numbered(paths: list[str], classes: Sequence[int | str | None]) -> Names:
    """Return a list of images of these classes, an entry each; names are numbered in their order."""
    names = sorted({name for name in classes if isinstance(name, str)})
    numbers = {None: -1} | {name: number for number, name in enumerate(names)}
    labels = [label if isinstance(label, int) else numbers[label] for label in classes]
    return Names(paths, labels, names or None, Tally())


def read_lines(path: Path) -> Names:
    """Read a list with a path per line, and after it a class number or name on all lines, or on none.

    Raises:
        ValueError: A line is of another form than that or than the first one.
    """
    return names_of(path, line_entries(path))


def line_entries(path: Path) -> Iterator[Entry]:
    """Yield the images of a list with a line each, as `read_lines` reads them."""
    with open_text(path) as file:
        for number, text in enumerate(file, start=1):
            if line := text.strip():
                yield Entry(*_path_and_label(path, number, line), number, line)


def is_plain(line: str) -> bool:
    """Return whether a line is PATH or PATH LABEL."""
    return has_image_ending(line) or _PATH.fullmatch(line) is not None


def _path_and_label(path: Path, number: int, line: str) -> tuple[str, str | None]:
    where = f"{path}: line {number}, {shorten(line)}"
    if has_image_ending(line):  # white space within a file's name begins no label
        return line, None
    match = _PATH.fullmatch(line)
    if match is None:
        raise ValueError(
            f"{where}, is neither an image's PATH nor PATH LABEL, and the first line names no columns, as "
            "path,label does; a list of classes alone goes with the "
            f"folder of its images: `fastpsl data write FOLDER OUT --labels {path}`"
        )
    name, space, rest = match.groups()
    label, _, more = rest.partition("\t")
    label = label.strip()
    if more and not _BOX.fullmatch(more):
        raise ValueError(f"{where}, has more after the path than a class and a box; give PATH LABEL alone")
    if len(label.split()) > 1 and "\t" not in space:
        raise ValueError(
            f"{where}, has several words after the path; give one word, or a tab before a name of several"
        )
    return name, label


def first_line(path: Path) -> str:
    """Return the first line of a text file that is not empty, or ""."""
    with open_text(path) as file:
        return next((line for line in map(str.strip, file) if line), "")


def folders_around(path: Path) -> list[Path]:
    """Return the folders that a list's names may be relative to, the likeliest first."""
    parent = Path(os.path.abspath(path)).parent
    places = [folder / below for folder in (parent, parent.parent) for below in BELOW]
    return [place for place in dict.fromkeys([*places, Path.cwd()]) if place.is_dir()]


def read_classes(path: Path) -> list[str]:
    """Read a list with the name of a class on each line, in quotation marks or not.

    Raises:
        ValueError: It cannot be read, is empty, or has numbers alone, as the list of ImageNet's devkit.
    """
    try:
        with open_text(path) as file:
            names = [name for name in map(_class_name, file) if name]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give a list of classes") from None
    if not names:
        raise ValueError(f"{path}: names no class; give a list with one class per line")
    if all(map(is_number, names)):
        raise ValueError(
            f"{path}: has numbers alone, and does not tell which classes they are (ImageNet's devkit counts "
            "its own order of synsets, not the sorted one); give a list with one WNID per line, or FILE WNID"
        )
    return names


def _class_name(line: str) -> str:
    line = line.strip().rstrip(",;\t ")  # of a table's empty cells
    quoted = re.fullmatch(r'"((?:[^"]|"")*)"', line)
    return quoted[1].replace('""', '"') if quoted else line


def shorten(line: str) -> str:
    """Return a line in quotes, cut to 100 characters."""
    return repr(line if len(line) < 100 else f"{line[:100]}...")
