"""The files of what the papers print: some rows, read beside the papers, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastpsl.tables.evaluations import BLOCK_PROBE, with_mean
from fastpsl.tables.needs import Weights
from fastpsl.tables.paper_file import read_paper
from fastpsl.tables.papers import TABLES

# Rows as they stand in the papers; - is a dash there.
PRINTED = {
    "psl/4": {"SwAV [9]": "75.3", "Rotation [21]": "47.3", "Rotation*": "48.6", "MoCov2+PSL": "68.1"},
    "psl/5": {"Supervised": "11.6 33.3 48.7 67.9 75.5", "PSL": "10.9 27.0 43.2 50.9 38.5"},
    "psl/6": {"Rotation": "10.9 30.1 40.2 48.6 46.5", "PSL_f": "10.5 31.1 42.1 52.9 49.7"},
    "psl/7": {"Supervised": "48.4 80.4", "Rotation+PSL": "54.8 83.7"},
    "psl/8": {"Supervised": "52.6 81.1 57.4 0.0", "Jigsaw+PSL": "51.1 78.9 55.3 -2.1"},
    "psl/9": {"Jigsaw [38]": "64.5 41.2 21.3", "Rotation+PSL": "65.9 43.0 25.9"},
    "uic/1": {"UIC 5k": "40.6 40.9 38.2 40.8", "UIC 10k": "40.6 40.8 37.9 42.6"},
    "uic/2": {"UIC 3k ×": "41.2 41.0 38.1", "UIC 3k √": "41.6 41.5 39.0"},
    "uic/3": {"UIC 3k ×": "39.5 39.9 37.9", "UIC 3k √": "41.6 41.5 39.0"},
    "uic/4": {"SelfLabel 3k × 1 [1]": "- - 43.0 44.7 40.9", "Ours": "12.8 34.3 41.6 41.5 39.0"},
    "uic/5": {"Contenxt [8]": "55.1 63.1 51.1 -", "RotNet [14]": "70.87 72.97 54.4 39.1"},
    "uic/6": {"UIC 3k, 224 px": "48.79 53.03 62.46 65.05", "DeepCluster, 84 px": "53.46 54.87 49.81 50.18"},
    "uic/7": {"UIC (Ours)": "41.6 41.5 39.0 38.5", "UIC + strong aug (Ours)": "43.5 45.6 44.3 40.0"},
    "uic/8": {"Mocov2 [6]": "71.1 -", "UIC + strong aug (Ours), VGG16": "57.7 46.9"},
    "sslpp/3": {"Rotation [8]": "90.8 86.4 60.1 79.5", "Ours+AET": "90.9 86.8 75.7 84.5"},
    "sslpp/3-stl": {"Context [7]": "62.6 59.4 52.6 58.2", "Ours+AET": "87.7 84.6 75.0 82.4"},
    "sslpp/4": {"Rotation [8]": "53.1 52.0 53.2 60.1", "Ours+Color.": "72.5 75.1 75.4 74.2"},
    "sslpp/5": {"Supervised": "75.5 89.9 89.2 84.9", "Ours+AET": "72.1 75.9 66.4 71.5"},
    "sslpp/5-stl": {"Ours+Color.": "50.8 53.5 55.5 53.4", "AET [9]": "50.5 48.1 18.1 38.9"},
    "sslpp/6": {"Rotation [8]": "15.6 15.6 16.9 18.2 18.8 19.0 17.4"},
    "sslpp/7": {"Ours+Rot.": "63.6 74.5 78.0 78.3 76.9 73.9 74.2"},
    "sslpp/8": {"AET [9]": "68.1 68.8 36.2 57.7 78.3 75.1 45.4 66.3 83.8 79.5 56.0 73.1 87.4 82.5 58.8 76.2"},
    "sslpp/9": {"Rotation [8]: K-means": "89.7 86.0 63.7 79.8", "AET [9]: Labels": "92.6 91.9 91.4 92.0"},
    "sslpp/10": {"AET: DeeperCluster [19]": "58.8 70.8 75.2 73.7 69.9 67.7 69.4"},
    "sslpp/11": {"Re-training: SPL": "84.1 78.7 71.1 78.0", "KNN: SPL": "61.4 64.5 61.3 62.4"},
    "sslpp/11-stl": {"Re-training: Ours": "87.7 84.6 75.0 82.4", "KNN: SPL": "45.7 44.3 45.4 45.1"},
    "sslpp/11-yfcc": {"SPL": "62.4 72.2 75.8 74.5 70.2 67.5 70.4"},
    "sslpp/12": {"Coupled": "85.2 81.5 67.7 78.1"},
    "sslpp/13": {"50 clusters": "52.3 89.2 75.2", "100 clusters": "50.4 89.7 75.1"},
    "sslpp/14": {"Cr / Cr": "22.3 89.0 60.1", "Cr+G / Cr+F+Co+G": "50.1 89.6 74.4"},
}  # fmt: skip
NOT_PRINTED = {"psl/ablations", "sslpp/fig1", "sslpp/fig3", "sslpp/fig4", "sslpp/fig5", "sslpp/fig6"}
# Rows that a table has from another one.
REPEATED = [
    ("psl/ablations", "Jigsaw", "psl/5", "Jigsaw"),
    ("psl/ablations", "PSL", "psl/5", "PSL"),
    ("uic/3", "UIC 3k √, not tuned", "uic/2", "UIC 3k ×"),
    ("uic/7", "UIC, not tuned", "uic/1", "UIC 3k"),
    ("sslpp/10", "Rotation: Ours", "sslpp/7", "Ours+Rot."),
    ("sslpp/10", "AET: Ours", "sslpp/7", "Ours+AET"),
    *(("sslpp/fig1", row.method, "sslpp/7", row.method) for row in TABLES["sslpp/fig1"].rows),
]
NUM_ROWS = {"psl/4": 18, "uic/4": 18, "uic/5": 15, "uic/8": 15, "sslpp/7": 10, "sslpp/9": 9, "sslpp/10": 7}


def test_numbers_as_printed() -> None:
    assert PRINTED.keys() | NOT_PRINTED == TABLES.keys()
    for name, rows in PRINTED.items():
        for method, line in rows.items():
            numbers = tuple(None if word == "-" else float(word) for word in line.split())
            assert TABLES[name].row(method).numbers == numbers, (name, method)
    assert {name: len(TABLES[name].rows) for name in NUM_ROWS} == NUM_ROWS


@pytest.mark.parametrize(("table", "method", "other", "there"), REPEATED)
def test_repeated_numbers_are_those_of_the_other_table(
    table: str, method: str, other: str, there: str
) -> None:
    row = TABLES[table].row(method)
    assert row.numbers == TABLES[other].row(there).numbers[: len(row.numbers)]


def test_what_tables_say_beside_their_numbers() -> None:
    four, six, seven = TABLES["psl/4"], TABLES["psl/6"], TABLES["uic/7"]
    assert {row.method for row in four.rows if row.million_parameters == 86} == {"Rotation [21]"}
    assert {row.million_parameters for row in four.rows} == {24, 86}
    assert six.row("PSL_f").arch == "R50" and six.row("SL").arch == "Rv50"
    assert seven.row("SelfLabel 3k × 10 [1]").arch == "AlexNet+10heads"
    assert not TABLES["uic/4"].row("Random-Sobel").printed
    figures = [TABLES[f"sslpp/{name}"] for name in ("fig3", "fig4", "fig5", "fig6")]
    assert not any(row.printed for table in figures for row in table.rows)
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
        ("[]", "some.json: [] is no object"),
        ('{"tables": {}, "tables": {}}', "some.json: a key stands twice among tables, tables"),
        ("{", "some.json: Expecting property name"),
        ({"tables": {}}, "some.json: defaults, images, notes is missing"),
        (paper([]), "some.json, table 1: [] is no object"),
        (paper(TABLE | {"gain": "g"}), "table 1: unknown field 'gain': allowed are title, number"),
        (paper(defaults={}), "table 1: number, images, gains, unmeasured, unprinted is missing"),
        (paper(TABLE | {"images": "most"}), "table 1, images: unknown name 'most': allowed are all"),
        (paper(images={"all": IMAGES | {"num_val": 2.5}}), "table 1, images: num_val cannot be 2.5"),
        (paper(TABLE | {"notes": [{"shared": "x"}]}), "table 1, notes: unknown name 'x': allowed are far"),
        (paper(TABLE | {"rows": [ROW, ROW]}), "table 1: 'One' is two rows"),
        (with_row(baseline="Three"), "table 1: 'One' improves 'Three', which is no row"),
        (with_row(numbers=[1, None]), "table 1, row 1: numbers cannot be [1, None]"),
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
