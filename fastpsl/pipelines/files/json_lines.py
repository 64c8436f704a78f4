"""The reader of a run's JSON lines (metrics, monitor records, figures of epochs), up to the first damage."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_MAX_LINE_BYTES = 1 << 20


class Line(NamedTuple):
    """One line of a file.

    Attributes:
        row: The object; it has at least "run_step", an integer, and "stage", a name.
        end: The offset in bytes at which the line ends.
    """

    row: dict[str, Any]
    end: int


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
