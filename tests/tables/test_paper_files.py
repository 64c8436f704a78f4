"""The files of what the papers print: what stands beside the numbers, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastpsl.tables.paper_file import TABLES, read_paper
from fastpsl.tables.rows import BLOCK_PROBE, Weights, with_mean


def test_what_tables_say_beside_their_numbers() -> None:
    four, six, seven = TABLES["psl/4"], TABLES["psl/6"], TABLES["uic/7"]
    assert {row.method for row in four.rows if row.million_parameters == 86} == {"Rotation [21]"}
    assert {row.million_parameters for row in four.rows} == {24, 86}
    assert six.row("PSL_f").arch == "R50" and six.row("SL").arch == "Rv50"
    assert seven.row("SelfLabel 3k × 10 [1]").arch == "AlexNet+10heads"
    assert [TABLES[name].images.num_pretrain for name in ("psl/4", "sslpp/3-stl", "sslpp/7")] == [
        None, 105_000, 300_000,
    ]  # fmt: skip


ROW: dict[str, Any] = {"method": "One", "numbers": [1.0, None], "weights": "net"}
OTHER: dict[str, Any] = {
    "method": "Two",
    "arch": "Other",
    "numbers": [2.0, 3.0],
    "baseline": "One",
    "note": "ours",
}
IMAGES: dict[str, Any] = {"name": "CIFAR-10", "num_train": 4, "num_val": 2}
TABLE: dict[str, Any] = {
    "title": "A title", "columns": ["B2", "Avg."], "measured": "blocks", "rows": [ROW, OTHER],
    "notes": [{"shared": "far"}, "near"],
}  # fmt: skip
DEFAULTS = {
    "number": "%",
    "gains": "g",
    "unmeasured": "m",
    "unprinted": "p",
    "images": "all",
    "arch": "NIN",
}
NET = Weights("nin4")


def read(folder: Path, paper: Any) -> Any:
    path = folder / "some.json"
    path.write_text(paper if isinstance(paper, str) else json.dumps(paper))
    return read_paper(path, {"net": NET}, {"blocks": with_mean(BLOCK_PROBE, "b2"), "one": lambda weights: ()})


def paper(table: Any = TABLE, **changes: Any) -> dict[str, Any]:
    record = {
        "defaults": DEFAULTS,
        "images": {"all": IMAGES},
        "notes": {"far": "away"},
        "tables": {"1": table},
    }
    return record | changes


def with_row(**changes: Any) -> dict[str, Any]:
    return paper(TABLE | {"rows": [ROW | changes, OTHER]})


def test_a_file_is_read(tmp_path: Path) -> None:
    (table,) = read(tmp_path, paper())
    one, two = table.rows
    assert (table.name, table.columns, table.notes) == ("some/1", ("B2", "Avg."), ("away", "near"))
    assert table.images.num_train == 4 and (one.arch, two.arch) == ("NIN", "Other")
    assert one.numbers == (1.0, None) and two.numbers == (2.0, 3.0) and not two.measures
    assert [measure.of for measure in one.measures] == ["best", "mean"] and one.measures[0].weights == NET
    (table,) = read(tmp_path, paper(TABLE | {"rows": [{"method": "One", "weights": ["net", "net"]}]}))
    assert len(table.rows[0].measures) == 2 and not table.rows[0].printed


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("[]", "some.json: [] is no JSON object"),
        ('{"tables": {}, "tables": {}}', "some.json: a key stands twice among tables, tables"),
        ("{", "some.json: Expecting property name"),
        ({"tables": {}}, "some.json: lacks the fields defaults, images, notes"),
        (paper([]), "some.json, table 1: [] is no JSON object"),
        (paper(TABLE | {"gain": "g"}), "table 1: unknown field 'gain': allowed are title, number"),
        (paper(defaults={}), "table 1: lacks the fields number, images, gains, unmeasured, unprinted"),
        (paper(TABLE | {"images": "most"}), "table 1, images: unknown name 'most': allowed are all"),
        (paper(images={"all": IMAGES | {"num_val": 2.5}}), "images: the field num_val cannot be 2.5"),
        (paper(TABLE | {"notes": [{"shared": "x"}]}), "table 1, notes: unknown name 'x': allowed are far"),
        (paper(TABLE | {"rows": [ROW, ROW]}), "table 1: 'One' is two rows"),
        (with_row(baseline="Three"), "table 1: 'One' improves 'Three', which is no row"),
        (with_row(numbers=[1, None]), "table 1, row 1: the field numbers cannot be [1, None]"),
        (with_row(numbers=[1.0]), "table 1, row 1: [1.0] are not 2 percentages"),
        (with_row(numbers=[1.0, 101.0]), "table 1, row 1: [1.0, 101.0] are not 2 percentages"),
        (with_row(weights="nets"), "table 1, row 1, weights: unknown name 'nets': allowed are net"),
        (with_row(weights=["net"]), "table 1, row 1: weights and measured columns are not 2"),
        (with_row(measured="one"), "table 1, row 1: weights and measured columns are not 2"),
        (with_row(measured="two"), "table 1, row 1, measured: unknown name 'two': allowed are blocks, one"),
        (paper(TABLE | {"rows": [{"method": "One"}]}), "row 1: 'One' is neither printed nor measured"),
        (with_row(notes="x"), "table 1, row 1: unknown field 'notes'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path: Path, record: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(tmp_path, record)
    assert words in str(caught.value)
