"""The lists of images that a writing leaves out, OUT.quarantine.csv and OUT.small.csv."""

import csv
import io
from pathlib import Path

from fastpsl.pipelines.files.atomic import PartialFile, write_all


def quarantine_path(out: Path) -> Path:
    """Return train.beton.quarantine.csv for train.beton."""
    return out.with_name(out.name + ".quarantine.csv")


def small_path(out: Path) -> Path:
    """Return train.beton.small.csv for train.beton."""
    return out.with_name(out.name + ".small.csv")


class LeftOut:
    """A CSV of images that are left out, with the reasons; the file appears with its first image."""

    def __init__(self, path: Path):
        self._path, self._offset = path, 0
        self._file: PartialFile | None = None
        self.num, self.first = 0, ""  # the number of images; the first one and its reason, in one line

    def add(self, name: str, reason: str) -> None:
        """Add an image."""
        self.num += 1
        self.first = self.first or " ".join(f"{name}: {reason}".split())
        if self._file is None:
            self._file = PartialFile(self._path)
            self._write("path", "reason")
        # "./" leaves the path the same, and keeps spreadsheets from taking it for a formula.
        self._write(f"./{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name, reason)

    def _write(self, *cells: str) -> None:
        assert self._file is not None
        line = io.StringIO()
        csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow(cells)
        data = line.getvalue().encode("utf-8", "surrogateescape")
        write_all(self._file.fd, data, self._offset)
        self._offset += len(data)

    def publish(self) -> None:
        if self._file:
            self._file.publish()
        else:
            self._path.unlink(missing_ok=True)  # from an older run

    def discard(self) -> None:
        if self._file:
            self._file.discard()
