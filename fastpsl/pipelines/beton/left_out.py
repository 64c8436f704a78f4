"""The lists of images that a writing leaves out, OUT.bad.csv and OUT.small.csv, and their numbers."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastpsl.files.atomic import PartialFile, write_all
from fastpsl.pipelines.sources.tally import BAD, SMALL, Tally


def bad_path(out: Path) -> Path:
    """Return train.beton.bad.csv for train.beton."""
    return out.with_name(out.name + ".bad.csv")


def small_path(out: Path) -> Path:
    """Return train.beton.small.csv for train.beton."""
    return out.with_name(out.name + ".small.csv")


def left_out_before(records: Sequence[dict[str, Any]]) -> Tally:
    """Return what was left out when files were written, by their JSONs' `written`."""
    sources, tally = set[tuple[str, str]](), Tally()
    for record in records:
        counts = {BAD: record.get("num_bad"), SMALL: record.get("num_small")}
        source = (str(record.get("source")), str(record.get("split")))
        if source not in sources and isinstance(record.get("left_out"), dict):
            sources.add(source)  # of which all of its shards tell alike
            counts |= record["left_out"]
        tally.counts.update({kind: num for kind, num in counts.items() if type(num) is int and num > 0})
    return tally


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
