"""Lists of images and labels: a line each, or a table with a header.

The first line names the columns if it has no image, and where the second line has one, no path of another
kind. Where its words are not known, a table has two columns, and the one with images' names has the paths.
A first line sep=; names the separator, as for Excel. Text is UTF-8, or UTF-16 if it begins with its mark.
"""

import codecs
import csv
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

from fastpsl.console.words import cut, pasted
from fastpsl.files.leftovers import is_in_leftovers
from fastpsl.files.system_errors import input_errors
from fastpsl.pipelines.beton.shard import MAX_LABEL
from fastpsl.pipelines.interface.source import EXTENSIONS, LEFTOVERS, Tally, has_image_ending
from fastpsl.pipelines.readers.labels import as_label, is_label_word, is_number, is_path_word

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


_SEPARATOR = re.compile(r'"?sep=([^"\r\n])"?[\r\n]*', re.IGNORECASE)
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL, and a byte that is no UTF-8


def open_text(path: Path) -> IO[str]:
    """Open a list as text; names that are no UTF-8 pass unchanged."""
    with open(path, "rb") as file:
        is_utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    encoding, errors = ("utf-16", "replace") if is_utf16 else ("utf-8-sig", "surrogateescape")
    return open(path, encoding=encoding, errors=errors, newline="")


def lines_of(path: Path) -> Iterator[str]:
    """Yield the lines of a list; the first is empty if it only names the separator."""
    with open_text(path) as file:
        for number, line in enumerate(file):
            yield "\n" if number == 0 and _SEPARATOR.fullmatch(line) else line


def _separator(path: Path) -> str | None:
    """Return the separator that the first line of a list names."""
    with open_text(path) as file:
        match = _SEPARATOR.fullmatch(file.readline())
    return match and match[1]


def require_text(path: Path, part: str) -> None:
    """Raise ValueError if a part of a list is no text, and tell which byte of the list is none."""
    if not _NO_TEXT.search(part):
        return
    for number, line in enumerate(lines_of(path), start=1):
        if match := _NO_TEXT.search(line):
            raise no_utf8(path, ord(match[0]) & 0xFF, number)


def no_utf8(path: Path, byte: int, number: int) -> ValueError:
    """Build the error of a list in another encoding."""
    return ValueError(f"{path}: is no UTF-8 (byte 0x{byte:02X} in line {number}); save it as UTF-8")


def names_of(path: Path, entries: Iterable[Entry]) -> Names:
    """Return the images of a list, without leftovers of other programs, and number the classes by name."""
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
                    f"{path}: line {entry.number}, {cut(entry.line)!r}, has {_KINDS[type(label)]} beside "
                    f"the path, and an image before has {_KINDS[kind]}; "
                    "give all images a number, all a name, or none a label"
                )
        paths.append(os.path.normpath(entry.path))
        labels.append(label)
    return numbered(paths, labels)._replace(left_out=left_out)


def _label(path: Path, entry: Entry) -> int | str:
    label = as_label(entry.label)
    if label is None or (isinstance(label, int) and not -1 <= label <= MAX_LABEL):
        require_text(path, str(entry.label))
        raise ValueError(
            f"{path}: line {entry.number}, {cut(entry.line)!r}: the label is no integer from -1 "
            f"(none) to {MAX_LABEL}; number the classes so, or name them"
        )
    return label


def numbered(paths: list[str], classes: Sequence[int | str | None]) -> Names:
    """Return a list of images of these classes, an entry each; names are numbered in their order."""
    names = sorted({name for name in classes if isinstance(name, str)})
    numbers = {None: -1} | {name: number for number, name in enumerate(names)}
    labels = [label if isinstance(label, int) else numbers[label] for label in classes]
    return Names(paths, labels, names or None, Tally())


def _line_entries(path: Path) -> Iterator[Entry]:
    """Yield the images of a list of paths, each with a class number or name behind it or without."""
    for number, text in enumerate(lines_of(path), start=1):
        if line := text.strip():
            yield Entry(*_path_and_label(path, number, line), number, line)


def is_plain(line: str) -> bool:
    """Return whether a line is PATH or PATH LABEL."""
    return has_image_ending(line) or _PATH.fullmatch(line) is not None


def _path_and_label(path: Path, number: int, line: str) -> tuple[str, str | None]:
    where = f"{path}: line {number}, {cut(line)!r}"
    if has_image_ending(line):  # white space within a file's name begins no label
        return line, None
    match = _PATH.fullmatch(line)
    if match is None:
        require_text(path, line)
        raise ValueError(
            f"{where}, is neither an image's PATH nor PATH LABEL, and the first line names no columns, as "
            "path,label does; a list of classes alone goes with the "
            f"folder of its images: `fastpsl data write FOLDER OUT --labels {pasted(path)}`"
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
    return next((line for line in map(str.strip, lines_of(path)) if line), "")


def folders_around(path: Path) -> list[Path]:
    """Return the folders that a list's names may be relative to, the likeliest first."""
    parent = Path(os.path.abspath(path)).parent
    places = [folder / below for folder in (parent, parent.parent) for below in BELOW]
    return [place for place in dict.fromkeys([*places, Path.cwd()]) if place.is_dir()]


def read_classes(path: Path) -> list[str]:
    """Read a list with the name of a class on each line, in quotation marks or not."""
    with input_errors(path):
        names = [name for name in map(_class_name, lines_of(path)) if name]
    require_text(path, "".join(names))
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


class Table(NamedTuple):
    """A list that is read as a table: its delimiter, and its columns of paths and of labels."""

    path: Path
    delimiter: str
    has_header: bool
    num_columns: int
    image: int
    label: int | None

    def entries(self) -> Iterator[Entry]:
        """Yield the images; raise ValueError where it is no table, or a line lacks a path or a cell."""
        rows = _rows(self.path, self.delimiter)
        try:
            for number, row in islice(rows, int(self.has_header), None):
                line = self.delimiter.join(row)
                if len(row) != self.num_columns or not row[self.image]:
                    require_text(self.path, line)
                    raise ValueError(
                        f"{self.path}: line {number}, {cut(line)!r}, lacks a path, or has another number "
                        "of cells than the first line; give every line all cells, and those with a comma in "
                        "quotation marks"
                    )
                yield Entry(row[self.image], None if self.label is None else row[self.label], number, line)
        except csv.Error as error:
            raise ValueError(
                f"{self.path}: is no table ({error}); write one image and its class per line"
            ) from None


def table_of(path: Path) -> Table | None:
    """Return how a list is read as a table; None where its lines are paths, or anything else."""
    line, separator = first_line(path), _separator(path)
    delimiters = [each for each in ",;\t" if not is_plain(line) or _has_paths_last(path, each)]
    delimiters = [separator] if separator else delimiters
    if is_plain(line) and any(os.path.isfile(os.path.join(place, line)) for place in folders_around(path)):
        return None
    tables = (_table(path, delimiter) for delimiter in delimiters)
    return next((table for table in tables if table), None)


def _has_paths_last(path: Path, delimiter: str) -> bool:
    """Return whether only the last cells of the first lines name images, as in "cat,im/a.jpg"."""
    rows = _first_rows(path, delimiter)
    return all(len(row) > 1 and _image_columns(row) == [len(rows[0]) - 1] for row in rows)


def names_images(path: Path) -> bool:
    """Return whether a text file names images, in lines or as a table."""
    return is_plain(first_line(path)) or table_of(path) is not None


def entries(path: Path) -> Iterator[Entry]:
    """Yield the images of a list, in lines or as a table."""
    table = table_of(path)
    return table.entries() if table else _line_entries(path)


def _table(path: Path, delimiter: str) -> Table | None:
    rows = _first_rows(path, delimiter)
    if not rows:
        return None
    first, images = rows[0], _image_columns(rows[-1])
    has_header = not _image_columns(first)
    if has_header and not _names_columns(first, images):
        return None
    paths = [i for i, cell in enumerate(first) if is_path_word(cell)] if has_header else []
    labels = [i for i, cell in enumerate(first) if is_label_word(cell)]
    if not images and not (paths and labels):
        return None
    if len(paths) != 1:
        paths = [i for i in images if i in paths or not paths]
    others = [i for i in range(len(first)) if i not in paths]
    if len(others) > 1:
        others = [i for i in labels if i in others] if has_header else []
    if len(paths) != 1 or len(others) != min(1, len(first) - 1):
        raise ValueError(
            f"{path}: has {len(first)} columns ({cut(', '.join(first))!r}), and the first line does not "
            "tell which has the paths and which the labels; name them path and label there, or keep these "
            "two alone"
        )
    return Table(path, delimiter, has_header, len(first), paths[0], others[0] if others else None)


def _names_columns(first: list[str], images: list[int]) -> bool:
    """Return whether a line names columns, and has no path of an unknown kind in those of images."""
    if len(first) == 1:
        return is_path_word(first[0])
    above = [cell for i, cell in enumerate(first) if i in images]
    return all(is_path_word(cell) or ("/" not in cell and "." not in cell) for cell in above)


def _first_rows(path: Path, delimiter: str) -> list[list[str]]:
    rows = list[list[str]]()
    with suppress(csv.Error):  # `Table.entries` reports it
        rows.extend(row for _, row in islice(_rows(path, delimiter), 2))
    return rows


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not empty, each with the number of its last line."""
    reader = csv.reader(lines_of(path), delimiter=delimiter, skipinitialspace=True)
    for row in reader:
        cells = [cell.strip() for cell in row]
        if any(cells):
            yield reader.line_num, cells


def _image_columns(row: list[str]) -> list[int]:
    return [i for i, cell in enumerate(row) if has_image_ending(os.path.basename(cell))]
