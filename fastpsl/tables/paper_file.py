"""Read the JSON file of what a paper prints: its tables, number by number.

Each row of a table is one line, to be read beside the paper. A row names the weights and the columns that it
is measured with here. What these names mean is in the paper's module (psl, uic, sslpp).
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from fastpsl.tables import psl, sslpp, uic
from fastpsl.tables.rows import Columns, Measure, PaperImages, Row, Table, Weights

# The types that each field may have; a list holds values of its types.
Fields = Mapping[str, tuple[Any, ...]]
_PAPER: Fields = {"defaults": (dict,), "images": (dict,), "notes": (dict,), "tables": (dict,)}
_IMAGES: Fields = {"name": (str,), "num_train": (int,), "num_val": (int,), "num_pretrain": (int,)}
_ROW: Fields = {
    "method": (str,), "arch": (str,), "numbers": ([float, NoneType],), "million_parameters": (int,),
    "weights": (str, [str]), "measured": (str,), "baseline": (str,), "note": (str,),
}  # fmt: skip
_TABLE: Fields = {
    "title": (str,), "number": (str,), "columns": ([str],), "rows": ([dict],), "notes": ([str, dict],),
    "means": (int,), "arch": (str,), "measured": (str,), "million_parameters": (int,), "images": (str,),
    "gains": (str,), "unmeasured": (str,), "unprinted": (str,), "curves": (bool,),
}  # fmt: skip
_OF_EACH_TABLE = ("title", "number", "columns", "rows", "images", "gains", "unmeasured", "unprinted")
_SHARED_NOTE: Fields = {"shared": (str,)}
# Fields of a table that hold for its rows, too.
_OF_TABLE = ("arch", "measured", "million_parameters")


def read_paper(path: Path, weights: Mapping[str, Weights], columns: Mapping[str, Columns]) -> list[Table]:
    """Return the tables of a paper, in the order of the file."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_doubles)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    _check(record, _PAPER, _PAPER, path.name)
    names = _Names(weights, columns, record["images"], record["notes"])
    tables = []
    for name, table in record["tables"].items():
        where = f"{path.name}, table {name}"
        _check(table, _TABLE, (), where)
        tables.append(_table(f"{path.stem}/{name}", record["defaults"] | table, names, where))
    return tables


class _Names(NamedTuple):
    """The meanings of the names in a file."""

    weights: Mapping[str, Weights]
    columns: Mapping[str, Columns]
    images: Mapping[str, Any]
    notes: Mapping[str, Any]


def _table(name: str, record: dict[str, Any], names: _Names, where: str) -> Table:
    _check(record, _TABLE, _OF_EACH_TABLE, where)
    images = _meaning(names.images, record["images"], f"{where}, images")
    _check(images, _IMAGES, ("name", "num_train", "num_val"), f"{where}, images")
    of_table = {field: record.pop(field) for field in _OF_TABLE if field in record}
    num = len(record["columns"])
    rows = tuple(
        _row({**of_table, **row}, num, names, f"{where}, row {place}")
        for place, row in enumerate(record["rows"], 1)
    )
    methods = [row.method for row in rows]
    for row in rows:
        if methods.count(row.method) > 1:
            raise ValueError(f"{where}: {row.method!r} is two rows")
        if row.baseline is not None and row.baseline not in methods:
            raise ValueError(f"{where}: {row.method!r} improves {row.baseline!r}, which is no row")
    notes = []
    for note in record.pop("notes", []):
        if isinstance(note, dict):
            _check(note, _SHARED_NOTE, _SHARED_NOTE, f"{where}, notes")
            note = str(_meaning(names.notes, note["shared"], f"{where}, notes"))
        notes.append(note)
    if means := record.pop("means", 0):
        notes.insert(0, mean_note(rows, means))
    texts = record | {"columns": tuple(record["columns"]), "rows": rows, "notes": tuple(notes)}
    return Table(name=name, **(texts | {"images": PaperImages(**images)}))


def _row(record: dict[str, Any], num: int, names: _Names, where: str) -> Row:
    """Return a row of `num` columns. Without "numbers" the paper lacks it, without "weights" we do."""
    _check(record, _ROW, ("method", "arch"), where)
    numbers = tuple(record.pop("numbers", [None] * num))
    if len(numbers) != num or any(number is not None and abs(number) > 100 for number in numbers):
        raise ValueError(f"{where}: {list(numbers)} are not {num} percentages")
    weights, measured = record.pop("weights", None), record.pop("measured", None)
    measures: tuple[Measure, ...] = ()
    if weights is not None:
        columns = _meaning(names.columns, measured, f"{where}, measured")
        each = [weights] * num if isinstance(weights, str) else weights
        cells = [columns(_meaning(names.weights, one, f"{where}, weights")) for one in each]
        if len(cells) != num or any(len(cell) != num for cell in cells):
            raise ValueError(f"{where}: weights and measured columns are not {num}")
        measures = tuple(cell[place] for place, cell in enumerate(cells))
    row = Row(numbers=numbers, measures=measures, **record)
    if not row.printed and not row.measures:
        raise ValueError(f"{where}: {row.method!r} is neither printed nor measured")
    return row


def _meaning(names: Mapping[Any, Any], name: str | None, where: str) -> Any:
    if name not in names:
        raise ValueError(f"{where}: unknown name {name!r}: allowed are {', '.join(names)}")
    return names[name]


def _check(record: Any, fields: Fields, needed: Iterable[str], where: str) -> None:
    """Raise ValueError where `record` has not all of the needed fields, others, or values of other types."""
    if not _fits(record, (dict,)):
        raise ValueError(f"{where}: {record!r} is no JSON object")
    for field, value in record.items():
        if field not in fields:
            raise ValueError(f"{where}: unknown field {field!r}: allowed are {', '.join(fields)}")
        if not _fits(value, fields[field]):
            raise ValueError(f"{where}: the field {field} cannot be {value!r}")
    if missing := [field for field in needed if field not in record]:
        raise ValueError(f"{where}: lacks the fields {', '.join(missing)}")


def _fits(value: Any, kinds: Iterable[Any]) -> bool:
    if not isinstance(value, list):
        return type(value) in kinds
    return any(isinstance(kind, list) and all(_fits(one, kind) for one in value) for kind in kinds)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(f"a key stands twice among {', '.join(key for key, _ in pairs)}")
    return record


def mean_note(rows: Iterable[Row], num: int) -> str:
    """Return the note that names each printed mean that is more than 0.1 off the mean of its `num` cells."""
    wrong = []
    for row in rows:
        for start in range(0, len(row.numbers), num + 1):
            *cells, printed = row.numbers[start : start + num + 1]
            if printed is None:
                continue
            mean = statistics.fmean(cell for cell in cells if cell is not None)
            if abs(mean - printed) > 0.1 + 1e-9:
                wrong.append(f"{row.method} {printed:.1f}, its cells' mean is {mean:.1f}")
    note = "Avg.: the paper's as it prints it, ours of our cells."
    if wrong:
        note += f" Printed means that differ from their cells' mean by more than 0.1: {'; '.join(wrong)}."
    return note


MODULES = {"psl": psl, "uic": uic, "sslpp": sslpp}
TABLES = {
    table.name: table
    for paper, module in MODULES.items()
    for table in read_paper(Path(__file__).with_name(f"{paper}.json"), module.WEIGHTS, module.COLUMNS)
}


def _place(name: str) -> tuple[int, float, str]:
    """Return the key of a table's place: papers in order, numbers in order, then what has no number."""
    paper, _, which = name.partition("/")
    number = which.partition("-")[0]
    return [*MODULES].index(paper), int(number) if number.isdigit() else math.inf, which


NAMES = tuple(sorted(TABLES, key=_place))
