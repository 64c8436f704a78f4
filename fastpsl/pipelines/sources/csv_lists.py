"""Lists of images as tables: cells between commas, semicolons or tabs, in quotation marks or not (RFC 4180).

The first line names the columns if it has no image, and where the second line has one, no path of another
kind. Where its words are not known, a table has two columns, and the one with images' names has the paths.
"""

import csv
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from fastpsl.pipelines.sources.labels import is_label_word, is_path_word
from fastpsl.pipelines.sources.lines import (
    Entry,
    Names,
    first_line,
    folders_around,
    is_plain,
    line_entries,
    names_of,
    open_text,
    shorten,
)
from fastpsl.pipelines.sources.source import has_image_ending


class Table(NamedTuple):
    """A list that is read as a table: its delimiter, and its columns of paths and of labels."""

    path: Path
    delimiter: str
    has_header: bool
    num_columns: int
    image: int
    label: int | None

    def entries(self) -> Iterator[Entry]:
        """Yield the images.

        Raises:
            ValueError: It is no table, or a line lacks a path or a cell.
        """
        rows = _rows(self.path, self.delimiter)
        try:
            for number, row in islice(rows, int(self.has_header), None):
                line = self.delimiter.join(row)
                if len(row) != self.num_columns or not row[self.image]:
                    raise ValueError(
                        f"{self.path}: line {number}, {shorten(line)}, lacks a path, or has another number "
                        "of cells than the first line; give every line all cells, and those with a comma in "
                        "quotation marks"
                    )
                yield Entry(row[self.image], None if self.label is None else row[self.label], number, line)
        except csv.Error as error:
            raise ValueError(
                f"{self.path}: is no table ({error}); write one image and its class per line"
            ) from None

    def names(self) -> Names:
        """Read the images and their labels.

        Raises:
            ValueError: As `entries`, or the labels are of several kinds.
        """
        return names_of(self.path, self.entries())


def table_of(path: Path) -> Table | None:
    """Return how a list is read as a table; None where its lines are paths, or anything else.

    Raises:
        ValueError: It has more than two columns, and the first line does not tell which are wanted.
    """
    line = first_line(path)
    delimiters = [each for each in ",;\t" if not is_plain(line) or _has_paths_last(path, each)]
    if is_plain(line) and any(os.path.isfile(os.path.join(place, line)) for place in folders_around(path)):
        return None
    tables = (_table(path, delimiter) for delimiter in delimiters)
    return next((table for table in tables if table), None)


def _has_paths_last(path: Path, delimiter: str) -> bool:
    """Return whether only the last cells of the first lines name images, as in "cat,im/a.jpg"."""
    rows = _first_rows(path, delimiter)
    return all(len(row) > 1 and _image_columns(row) == [len(rows[0]) - 1] for row in rows)


def names_images(path: Path) -> bool:
    """Return whether a text file names images, in lines or as a table.

    Raises:
        ValueError: As `table_of`.
    """
    return is_plain(first_line(path)) or table_of(path) is not None


def first_entry(path: Path) -> Entry | None:
    """Return the first image that a list names, or None.

    Raises:
        ValueError: As `table_of`, or the first line is of no known form.
    """
    table = table_of(path)
    return next(table.entries() if table else line_entries(path), None)


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
            f"{path}: has {len(first)} columns ({shorten(', '.join(first))}), and the first line does not "
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
    with open_text(path) as file:
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield reader.line_num, cells


def _image_columns(row: list[str]) -> list[int]:
    return [i for i, cell in enumerate(row) if has_image_ending(os.path.basename(cell))]
