"""The papers' numbers, read from the papers and not from our files, and what such a file may have."""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from fastpsl.tables.paper_file import TABLES, read_paper
from fastpsl.tables.rows import BLOCK_PROBE, Weights, with_mean
from tests.tables.golden import sections

# The rows of the papers' tables, in their order. - is a dash there, * what our copy of the paper cuts off. A
# line with a colon is the heading of the rows below. Two names: the halves of the rows are two of our tables.
# Columns of SSL++'s Tables XIII and XIV are lines here. In C1 of its Table VII our copy has two numbers in a
# cell each of Rotation and AET, and none below: the second is Ours, as Tables X and XI print it.
PRINTED = {name: lines[1:] for name, lines in sections(Path(__file__).with_name("printed.txt")).items()}
# Rows that our tables have from other tables.
COPIED = {
    ("psl/ablations", "Jigsaw"): ("psl/5", "Jigsaw"),
    ("psl/ablations", "PSL"): ("psl/5", "PSL"),
    ("uic/3", "UIC 3k √, not tuned"): ("uic/2", "UIC 3k ×"),
    ("uic/7", "UIC, not tuned"): ("uic/1", "UIC 3k"),
    **{("sslpp/fig1", row.method): ("sslpp/7", row.method) for row in TABLES["sslpp/fig1"].rows},
}
# SSL++'s "fair comparison" under Table IX: SAID has its numbers.
OF_THE_TEXT = ("sslpp/9", "Rotation [8]: Ours, 10 clusters")

# The papers' slips: means that their cells do not have.
OTHER_MEANS = {
    ("sslpp/3", "Rotation [8]", "Avg."): 79.5,
    ("sslpp/3-stl", "Rotation [8]", "Avg."): 75.1,
    ("sslpp/5-stl", "Ours+Color.", "Avg."): 53.4,
    ("sslpp/8", "Color. [6]", "400: Avg."): 62.6,
}
NUM_MEANS = 132

# Numbers that the texts name: of a row, or what it adds to another one. UIC's text names none.
SAID: list[tuple[str, str, str | None, dict[str, float]]] = [
    ("psl/4", "MoCov2+PSL", "MoCov2 [11]", {"Top 1": 0.6}),  # section 4.1
    ("psl/4", "Jigsaw+PSL", "Jigsaw [38]", {"Top 1": 5.2}),  # 4.2
    ("psl/4", "Jigsaw [38]", None, {"Top 1": 45.7}),
    ("psl/4", "Jigsaw+PSL", None, {"Top 1": 50.9}),
    ("psl/4", "Rotation+PSL", "Rotation*", {"Top 1": 4.7}),
    ("psl/4", "Rotation*", None, {"Top 1": 48.6}),
    ("psl/4", "Rotation+PSL", None, {"Top 1": 53.3}),
    ("psl/4", "SimCLR+PSL", "SimCLR [10]", {"Top 1": 2.4}),
    ("psl/4", "SimCLR [10]", None, {"Top 1": 61.9}),
    ("psl/4", "SimCLR+PSL", None, {"Top 1": 64.3}),
    ("psl/7", "Jigsaw+PSL", "Jigsaw [38]", {"1% labels": 3.3, "10% labels": 3.9}),  # 4.3
    ("psl/7", "Rotation+PSL", "Rotation [21]", {"1% labels": 2.7, "10% labels": 1.2}),
    ("psl/8", "Jigsaw+PSL", "Jigsaw [38]", {"AP_all": 2.2, "AP50": 3.8, "AP75": 2.4}),  # 4.4.1: see OTHERWISE
    ("psl/8", "Rotation+PSL", "Rotation [21]", {"AP_all": 1.3, "AP50": 2.1, "AP75": 1.8}),
    ("psl/9", "Jigsaw+PSL", "Jigsaw [38]", {"PASCAL": 2.7, "Places": 3.5, "iNat18": 2.8}),  # 4.4.2
    ("psl/9", "Rotation+PSL", "Rotation [21]", {"PASCAL": 2.4, "Places": 1.1, "iNat18": 2.9}),
    ("sslpp/3", "Ours+Color.", "Color. [6]", {"Avg.": 5.1}),  # section V.B
    ("sslpp/3", "Ours+Con.", "Context [7]", {"Avg.": 10.3}),
    ("sslpp/3", "AET [9]", None, {"Avg.": 78.8}),
    ("sslpp/3", "Ours+AET", None, {"Avg.": 84.5}),
    ("sslpp/3-stl", "AET [9]", None, {"Avg.": 73.8}),
    ("sslpp/3-stl", "Ours+AET", None, {"Avg.": 82.4}),
    ("sslpp/3", "Random", None, {"B2": 70.1}),
    ("sslpp/8", "Ours+AET", None, {"20: Avg.": 66.3}),
    ("sslpp/8", "Supervised", None, {"20: Avg.": 37.5}),
    ("sslpp/7", "Ours+Color.", "Color. [6]", {"Fc": 10.0}),  # V.C
    ("sslpp/7", "Ours+Con.", "Context [7]", {"Fc": 13.7}),
    ("sslpp/7", "Ours+Rot.", "Rotation [8]", {"Fc": 2.7}),
    ("sslpp/7", "Ours+AET", "AET [9]", {"Fc": 4.7}),
    (*OF_THE_TEXT, None, {"B2": 88.4, "B3": 83.3, "B4": 73.5}),  # V.E
    ("sslpp/14", "Cr / Cr", None, {"Cluster Acc.": 22.3}),
    ("sslpp/14", "Cr+G+S / Cr+F+Co+G+S", None, {"Cluster Acc.": 54.4, "B4": 75.9}),
]
# Where a text and its table disagree: the two cells, the gain as the text has it, and that of the cells.
Cell = tuple[str, str]
OTHERWISE: list[tuple[str, Cell, Cell, float, float]] = [
    # PSL, 4.4.1: "{AP50, AP75, ΔAP75}", with the gains of AP_all, AP50, AP75.
    ("psl/8", ("Jigsaw+PSL", "AP50"), ("Jigsaw [38]", "AP50"), 2.2, 3.8),
    ("psl/8", ("Jigsaw+PSL", "AP75"), ("Jigsaw [38]", "AP75"), 3.8, 2.4),
    ("psl/8", ("Rotation+PSL", "AP50"), ("Rotation [21]", "AP50"), 1.3, 2.1),
    ("psl/8", ("Rotation+PSL", "AP75"), ("Rotation [21]", "AP75"), 2.1, 1.8),
    # SSL++, V.E: "the performance gap between B2 and B4 is 37.9%", of AET.
    ("sslpp/11", ("Re-training: AET", "B2"), ("Re-training: AET", "B4"), 37.9, 31.3),
]


def printed(name: str) -> list[tuple[str, list[str]]]:
    """Return what the paper prints of one of our tables: the methods of the rows, and their words."""
    rows: list[tuple[str, list[str]]] = []
    num = len(TABLES[name].columns)
    for names, block in ((key.split(), block) for key, block in PRINTED.items()):
        if name not in names:
            continue
        start, heading = num * names.index(name), ""
        for line in block:
            if line.endswith(":"):
                heading = f"{line.strip()} "
                continue
            method, *words = line.rsplit(maxsplit=num * len(names))
            rows.append((heading + method.strip(), words[start : start + num]))
    return rows


def fits(number: float | None, word: str) -> bool:
    """Return whether a cell of ours is what the paper prints there."""
    if number is None or word == "-":
        return number is None and word == "-"
    return fnmatchcase(str(number), word) if "*" in word else number == float(word)


def cell(table: str, method: str, column: str) -> float:
    number = TABLES[table].row(method).numbers[TABLES[table].columns.index(column)]
    assert number is not None
    return number


@pytest.mark.parametrize("name", TABLES)
def test_tables_have_what_the_papers_print_and_no_more(name: str) -> None:
    others = {*COPIED, OF_THE_TEXT}
    rows = [row for row in TABLES[name].rows if row.printed and (name, row.method) not in others]
    lines = printed(name)
    assert [row.method for row in rows] == [method for method, _ in lines]
    for row, (_, words) in zip(rows, lines, strict=True):
        assert len(words) == len(row.numbers) and all(map(fits, row.numbers, words)), (row, words)


def test_no_printed_table_is_missing() -> None:
    assert {name for names in PRINTED for name in names.split()} <= TABLES.keys()


def test_copied_rows_are_those_of_the_other_table() -> None:
    for (name, method), (other, there) in COPIED.items():
        row = TABLES[name].row(method)
        assert row.numbers == TABLES[other].row(there).numbers[: len(row.numbers)], (name, method)


def test_printed_means_are_those_of_their_cells() -> None:
    num, others = 0, {}
    for table in TABLES.values():
        for row in table.rows:
            cells: list[float] = []
            for title, number in zip(table.columns, row.numbers, strict=True):
                if number is None:
                    continue
                if not title.split()[-1].startswith("Avg"):
                    cells.append(number)
                    continue
                num += 1
                if abs(fmean(cells) - number) > 0.051:
                    others[table.name, row.method, title] = number
                cells = []
    assert others == OTHER_MEANS and num == NUM_MEANS


def test_printed_differences_from_the_supervised_row() -> None:
    for row in TABLES["psl/8"].rows:
        below = cell("psl/8", row.method, "AP75") - cell("psl/8", "Supervised", "AP75")
        assert cell("psl/8", row.method, "ΔAP75") == pytest.approx(below, abs=0.01)


def test_what_the_texts_say_is_what_the_cells_have() -> None:
    for table, method, baseline, numbers in SAID:
        for column, said in numbers.items():
            number = cell(table, method, column) - (cell(table, baseline, column) if baseline else 0.0)
            assert number == pytest.approx(said, abs=0.01), (table, method, column)
    for table, one, other, said, gain in OTHERWISE:
        number = cell(table, *one) - cell(table, *other)
        assert number == pytest.approx(gain, abs=0.01) and abs(number - said) > 0.051, (table, one)


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
    "method": "Two", "arch": "Other", "numbers": [2.0, 3.0], "baseline": "One", "note": "ours",
}  # fmt: skip
IMAGES: dict[str, Any] = {"name": "CIFAR-10", "num_train": 4, "num_val": 2}
TABLE: dict[str, Any] = {
    "title": "A title", "columns": ["B2", "Avg."], "measured": "blocks", "rows": [ROW, OTHER],
    "notes": [{"shared": "far"}, "near"],
}  # fmt: skip
DEFAULTS = {
    "number": "%", "gains": "g", "unmeasured": "m", "unprinted": "p", "images": "all", "arch": "NIN",
}  # fmt: skip
NET = Weights("nin4")


def read(folder: Path, paper: Any) -> Any:
    path = folder / "some.json"
    path.write_text(paper if isinstance(paper, str) else json.dumps(paper))
    return read_paper(path, {"net": NET}, {"blocks": with_mean(BLOCK_PROBE, "b2"), "one": lambda weights: ()})


def paper(table: Any = TABLE, **changes: Any) -> dict[str, Any]:
    record = {
        "defaults": DEFAULTS, "images": {"all": IMAGES}, "notes": {"far": "away"}, "tables": {"1": table},
    }  # fmt: skip
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
        ({"tables": {}}, "some.json: lacks the fields defaults, images, notes"),
        (paper(TABLE | {"gain": "g"}), "table 1: unknown field 'gain': allowed are title, number"),
        (paper(images={"all": IMAGES | {"num_val": 2.5}}), "images: the field num_val cannot be 2.5"),
        (paper(TABLE | {"notes": [{"shared": "x"}]}), "table 1, notes: unknown name 'x': allowed are far"),
        (paper(TABLE | {"rows": [ROW, ROW]}), "table 1: 'One' is two rows"),
        (with_row(baseline="Three"), "table 1: 'One' improves 'Three', which is no row"),
        (with_row(numbers=[1, None]), "table 1, row 1: the field numbers cannot be [1, None]"),
        (with_row(numbers=[1.0, 101.0]), "table 1, row 1: [1.0, 101.0] are not 2 percentages"),
        (with_row(weights=["net"]), "table 1, row 1: weights and measured columns are not 2"),
        (with_row(measured="one"), "table 1, row 1: weights and measured columns are not 2"),
        (paper(TABLE | {"rows": [{"method": "One"}]}), "row 1: 'One' is neither printed nor measured"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(tmp_path: Path, record: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(tmp_path, record)
    assert words in str(caught.value)
