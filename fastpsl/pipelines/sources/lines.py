"""Plain text lists: one image per line, with a class number or name or without, or one class per line."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from fastpsl.pipelines.sources.source import EXTENSIONS, is_image

_PATH = re.compile(rf"(.*(?:{'|'.join(map(re.escape, EXTENSIONS))}))(\s+)(\S.*)", re.IGNORECASE)
_BOX = re.compile(r"[0-9]+(\t[0-9]+){3}")  # Tiny-ImageNet's val_annotations.txt has one after the class
_KINDS = {type(None): "no label", int: "a number", str: "a name"}


class Names(NamedTuple):
    """The contents of a list: paths, a label each (-1 for none), and the class names where it has them."""

    paths: list[str]
    labels: list[int]
    class_names: list[str] | None


def open_text(path: Path) -> IO[str]:
    """Open a list as text; names that are no UTF-8 pass unchanged."""
    return open(path, encoding="utf-8-sig", errors="surrogateescape", newline="")


def numbered(paths: list[str], classes: Sequence[str]) -> Names:
    """Return a list of images of these classes, an entry each, numbered in the order of their names."""
    names = sorted(set(classes))
    numbers = {name: number for number, name in enumerate(names)}
    return Names(paths, [numbers[name] for name in classes], names)


def read_lines(path: Path) -> Names:
    """Read a list with a path per line, and after it a class number or name on all lines, or on none.

    Raises:
        ValueError: A line is of another form than that or than the first one.
    """
    paths, labels = list[str](), list[int | str | None]()
    with open_text(path) as file:
        for number, text in enumerate(file, start=1):
            if not (line := text.strip()):
                continue
            name, label = _path_and_label(path, number, line)
            if labels and type(label) is not type(labels[0]):
                raise ValueError(
                    f"{path}: line {number}, {shorten(line)}, has {_KINDS[type(label)]} after the path, and "
                    f"the first image has {_KINDS[type(labels[0])]}; "
                    "give all images a number, all a name, or none a label"
                )
            paths.append(os.path.normpath(name))
            labels.append(label)
    if labels and isinstance(labels[0], str):
        return numbered(paths, [str(label) for label in labels])
    return Names(paths, [label if isinstance(label, int) else -1 for label in labels], None)


def _path_and_label(path: Path, number: int, line: str) -> tuple[str, int | str | None]:
    where = f"{path}: line {number}, {shorten(line)}"
    if is_image(os.path.basename(line)):  # white space within a file's name begins no label
        return line, None
    match = _PATH.fullmatch(line)
    if match is None or not is_image(os.path.basename(match[1])):
        raise ValueError(
            f"{where}, is neither an image's PATH nor PATH LABEL; a list of classes alone goes with the "
            f"folder of its images: `fastpsl data write FOLDER OUT --labels {path}`"
        )
    name, space, rest = match.groups()
    label, _, more = rest.partition("\t")
    label = label.strip()
    if more and not _BOX.fullmatch(more):
        raise ValueError(f"{where}, has more after the path than a class and a box; give PATH LABEL alone")
    # Python's int accepts other numbers, such as 1_000.
    if re.fullmatch("0*[0-9]{1,10}", label) and int(label[-10:]) < 2**31:
        return name, int(label[-10:])
    if len(label.split()) > 1 and "\t" not in space:
        raise ValueError(
            f"{where}, has several words after the path; give one word, or a tab before a name of several"
        )
    if _is_number(label):
        raise ValueError(
            f"{where}: the label is no integer from 0 to 2147483647; number the classes so, or name them"
        )
    return name, label


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def has_images(path: Path) -> bool:
    """Return whether the first line of a text file begins with an image's path."""
    with open_text(path) as file:
        line = next((line for line in map(str.strip, file) if line), "")
    return is_image(os.path.basename(line)) or _PATH.fullmatch(line) is not None


def read_classes(path: Path) -> list[str]:
    """Read a list with the name of a class on each line.

    Raises:
        ValueError: It cannot be read, is empty, or has numbers alone, as the list of ImageNet's devkit.
    """
    try:
        with open_text(path) as file:
            names = [line for line in map(str.strip, file) if line]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give a list of classes") from None
    if not names:
        raise ValueError(f"{path}: names no class; give a list with one class per line")
    if all(map(_is_number, names)):
        raise ValueError(
            f"{path}: has numbers alone, and does not tell which classes they are (ImageNet's devkit counts "
            "its own order of synsets, not the sorted one); give a list with one WNID per line, or FILE WNID"
        )
    return names


def shorten(line: str) -> str:
    """Return a line in quotes, cut to 100 characters."""
    return repr(line if len(line) < 100 else f"{line[:100]}...")
