"""SSL++'s tables: the numbers as printed, what the rows are measured on, the paper's sizes."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastpsl.tables.matching import needs_of
from fastpsl.tables.needs import BLOCK_PROBE, CLUSTERS, COUPLED, KNN, Weights
from fastpsl.tables.papers import TABLES
from fastpsl.tasks.pseudo_labels.iic import input_of
from tests.tables.table_results import PAPER, TINY, recipe, report

# Whole rows of the paper's tables as they stand there, and of Table XIII and XIV a column.
PRINTED = {
    "sslpp/3": """
        Supervised 92.2 92.6 91.7 92.2
        Random 70.1 66.4 65.8 67.4
        Color. [6] 78.4 71.2 66.5 72.0
        Ours+Color. 81.1 76.0 74.2 77.1
        Context [7] 78.8 70.7 63.9 71.1
        Ours+Con. 86.6 82.9 74.7 81.4
        Rotation [8] 90.8 86.4 60.1 79.5
        Ours+Rot. 90.1 86.5 75.9 84.2
        AET [9] 90.7 86.2 59.4 78.8
        Ours+AET 90.9 86.8 75.7 84.5""",
    "sslpp/3-stl": """
        Supervised 80.2 80.3 79.2 79.9
        Context [7] 62.6 59.4 52.6 58.2
        Rotation [8] 86.4 82.7 58.7 75.1
        Ours+AET 87.7 84.6 75.0 82.4""",
    "sslpp/4": """
        Random 57.3 65.0 65.6 65.8
        Rotation [8] 53.1 52.0 53.2 60.1
        Ours+Color. 72.5 75.1 75.4 74.2""",
    "sslpp/5": """
        Supervised 75.5 89.9 89.2 84.9
        Color. [6] 58.2 56.5 49.1 54.6
        Ours+AET 72.1 75.9 66.4 71.5""",
    "sslpp/5-stl": """
        Ours+Color. 50.8 53.5 55.5 53.4
        AET [9] 50.5 48.1 18.1 38.9""",
    "sslpp/6": """
        Supervised 88.2 88.8 89.0 89.2 89.3 89.3 89.0
        Rotation [8] 15.6 15.6 16.9 18.2 18.8 19.0 17.4
        Ours+AET 60.4 62.6 64.9 66.4 67.2 67.5 64.8""",
    "sslpp/8": """
        Supervised 37.3 37.6 37.5 37.5 58.9 59.1 59.2 59.1 78.7 78.5 78.9 78.7 86.0 85.7 86.1 85.9
        Color. [6] 50.9 52.4 49.5 50.9 61.1 59.3 55.0 58.5 68.3 62.9 59.2 62.6 72.2 66.4 63.1 67.2
        Ours+AET 67.6 69.8 61.5 66.3 77.6 75.3 65.3 72.7 83.6 79.9 68.8 77.4 86.7 82.6 71.4 80.2""",
    "sslpp/9": """
        Rotation [8]: Labels 90.3 88.1 85.0 87.8
        Rotation [8]: Random 89.2 85.4 60.0 78.2
        Rotation [8]: K-means 89.7 86.0 63.7 79.8
        Rotation [8]: Ours 90.1 86.5 75.9 84.2
        Rotation [8]: Ours, 10 clusters 88.4 83.3 73.5 -
        AET [9]: Labels 92.6 91.9 91.4 92.0
        AET [9]: Random 90.2 85.4 58.7 78.1
        AET [9]: K-means 90.1 85.8 62.1 79.3
        AET [9]: Ours 90.9 86.8 75.7 84.5""",
    "sslpp/11": """
        Re-training: AET 90.7 86.2 59.4 78.8
        Re-training: SPL 84.1 78.7 71.1 78.0
        Re-training: Ours 90.9 86.8 75.7 84.5
        KNN: AET 70.4 68.3 25.1 54.6
        KNN: SPL 61.4 64.5 61.3 62.4
        KNN: Ours 72.1 75.9 66.4 71.5""",
    "sslpp/11-stl": """
        Re-training: AET 86.5 80.5 54.5 73.8
        Re-training: SPL 79.3 73.6 66.2 72.9
        Re-training: Ours 87.7 84.6 75.0 82.4
        KNN: AET 50.5 48.1 18.1 38.9
        KNN: SPL 45.7 44.3 45.4 45.1
        KNN: Ours 53.5 58.3 53.5 55.1""",
    "sslpp/12": """
        Coupled 85.2 81.5 67.7 78.1
        Ours 90.9 86.8 75.7 84.5""",
    "sslpp/13": """
        10 clusters 42.1 88.4 73.5
        30 clusters 46.1 89.0 74.2
        50 clusters 52.3 89.2 75.2
        70 clusters 54.4 90.1 75.9
        100 clusters 50.4 89.7 75.1""",
    "sslpp/14": """
        Cr / Cr 22.3 89.0 60.1
        Cr / Cr+F 23.1 89.1 61.0
        Cr / Cr+F+Co 30.3 89.5 66.4
        Cr+G / Cr+F+Co+G 50.1 89.6 74.4
        Cr+G+S / Cr+F+Co+G+S 54.4 90.1 75.9""",
}
WHOLE = {"sslpp/3", "sslpp/9", "sslpp/11", "sslpp/11-stl", "sslpp/12", "sslpp/13", "sslpp/14"}
IIC = Weights("resnet34_iic", "sslpp_iic", "end_to_end")
ROTATION = Weights("nin4", "sslpp_rotation", "end_to_end")


@pytest.mark.parametrize("name", PRINTED)
def test_numbers_as_printed(name: str) -> None:
    table = TABLES[name]
    lines = PRINTED[name].strip().splitlines()
    for line in lines:
        words, num = line.strip().split(" "), len(table.columns)
        numbers = tuple(None if number == "-" else float(number) for number in words[-num:])
        assert table.row(" ".join(words[:-num])).numbers == numbers, line
    assert name not in WHOLE or len(table.rows) == len(lines)


def test_the_forms_of_the_tables() -> None:
    for name, table in TABLES.items():
        if name.startswith("sslpp/"):
            for row in table.rows:  # nothing of SSL++'s tables is the paper's alone, but for prior work
                if ": " in row.method and "[1" in row.method:
                    assert name == "sslpp/10" and not row.measures
                    continue
                assert len(row.measures) == len(row.numbers) == len(table.columns)
            assert len({row.method for row in table.rows}) == len(table.rows)
    of_all = [TABLES[f"sslpp/{name}"] for name in ("3", "3-stl", "4", "5", "5-stl", "6", "8", "fig5")]
    assert {tuple(row.method for row in table.rows) for table in of_all} == {
        tuple(row.method for row in of_all[0].rows)
    }
    assert len(TABLES["sslpp/fig4"].rows) == 8 and len(TABLES["sslpp/fig6"].rows) == 10
    for name in ("fig4", "fig5", "fig6"):
        assert not any(row.printed for row in TABLES[f"sslpp/{name}"].rows)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sslpp/3", "0.1: Rotation [8] 79.5, its cells' mean is 79.1."),
        ("sslpp/3-stl", "0.1: Rotation [8] 75.1, its cells' mean is 75.9."),
        ("sslpp/5", "ours of our cells."),
        ("sslpp/5-stl", "0.1: Ours+Color. 53.4, its cells' mean is 53.3."),
        ("sslpp/8", "0.1: Color. [6] 62.6, its cells' mean is 63.5."),
        ("sslpp/11-stl", "0.1: Re-training: SPL 72.9, its cells' mean is 73.0."),
    ],
)
def test_printed_means_that_are_none_are_told(name: str, told: str) -> None:
    assert TABLES[name].notes[0].endswith(told)


def words(table: str, method: str) -> list[tuple[Any, ...]]:
    def of(one: Weights | str | None) -> Any:
        return (one.recipe, one.variant) if isinstance(one, Weights) else one

    return [
        (
            one.weights.recipe,
            one.weights.variant,
            of(one.weights.labels),
            one.evaluation.name,
            one.numbers,
            one.of,
        )
        for one in TABLES[table].row(method).measures
    ]


def test_what_the_rows_are_measured_on() -> None:
    convs = tuple(f"top1_conv_{block}" for block in ("B2", "B3", "B4"))
    rotation, iic = "sslpp_rotation", ("sslpp_iic", None)
    assert words("sslpp/3", "Ours+Rot.") == [
        *((rotation, None, iic, "blocks", (name,), "best") for name in convs),
        (rotation, None, iic, "blocks", convs, "mean"),
    ]
    assert words("sslpp/3-stl", "Ours+AET")[3] == (
        "sslpp_aet", None, ("sslpp_iic", "stl"), "blocks/stl", convs, "mean",
    )  # fmt: skip
    assert words("sslpp/4", "Rotation [8]")[1] == (rotation, None, None, "blocks", ("top1_fc2_B4",), "best")
    assert words("sslpp/6", "Supervised")[0][:5] == (
        "supervised", "32px", None, "knn/blocks", ("top1_k1_majority_B4",),
    )  # fmt: skip
    assert words("sslpp/8", "Supervised")[4][:4] == ("supervised", "100", None, "blocks/100")
    assert words("sslpp/8", "Random")[15] == (None, None, None, "blocks/1000", convs, "mean")
    assert words("sslpp/9", "AET [9]: K-means")[0][:3] == ("sslpp_aet", None, "k-means")
    assert words("sslpp/9", "Rotation [8]: Ours, 10 clusters")[0][2] == ("sslpp_iic", "10")
    assert words("sslpp/11", "KNN: SPL")[0][:4] == ("sslpp_aet", "labels_alone", iic, "knn/blocks")
    assert words("sslpp/12", "Coupled")[0][:3] == ("sslpp_aet", None, COUPLED)
    assert words("sslpp/14", "Cr / Cr+F")[0] == (
        "sslpp_iic", "flip", None, "clusters", ("many_to_one_accuracy",), "best",
    )  # fmt: skip
    assert [one[:3] for one in words("sslpp/fig6", "λ = 0.05")] == [
        ("sslpp_colorization", "lambda_0.05", iic), ("sslpp_context", "lambda_0.05", iic), (rotation, None, iic),
        ("sslpp_aet", None, iic),
    ]  # fmt: skip
    assert [one[2] for one in words("sslpp/fig6", "λ = 0")] == [None] * 4
    evaluations = {need[1] for name in ("3", "4", "9", "11", "12", "13", "fig6") for need in needs_of(TABLES[f"sslpp/{name}"])}  # fmt: skip
    assert evaluations == {BLOCK_PROBE, KNN, CLUSTERS}  # one run of the classifiers serves all of them


def test_wide_tables_have_panels_in_lines(tmp_path: Path) -> None:
    from fastpsl.tables.picture import picture

    figure = picture(report(tmp_path, "sslpp/8", PAPER))
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels][:5] == ["20: B2", "20: B3", "20: B4", "20: Avg.", "100: B2"]
    assert len(panels) == 16 and figure.get_size_inches()[0] < 15
    figure = picture(report(tmp_path, "sslpp/6", PAPER))
    assert len([axis for axis in figure.axes if axis.get_visible()]) == 7


def test_the_papers_sizes() -> None:
    """Table II's evaluation, and what the recipe does by itself."""
    of = PAPER.values
    for name, value in recipe("block_probe")["PAPER"].items():
        assert name == "heads" or of["blocks"][name] == value
    assert (of["blocks"]["batch_size"], of["blocks/stl"]["batch_size"]) == (128, 64)
    assert {name for name, value in of["blocks/stl"].items() if value != of["blocks"][name]} == {"batch_size"}
    assert [of[f"blocks/{number}"]["labels_per_class"] for number in (20, 100, 400, 1000)] == [20, 100, 400, 1000]  # fmt: skip
    assert [of[f"supervised/{number}"]["labels_per_class"] for number in (20, 1000)] == [20, 1000]
    assert of["knn/blocks"]["k"] == (1, 3, 5, 10, 15, 20) and of["tsne"]["num"] == 1000
    assert [of[f"sslpp_iic/{number}"] for number in (10, 100)] == [{"num_clusters": 10}, {"num_clusters": 100}]  # fmt: skip
    usual = [
        of[f"sslpp_{task}"]["semantic_weight"] for task in ("colorization", "context", "rotation", "aet")
    ]
    assert usual == [1.0, 1.0, 0.05, 0.05]
    assert [of[f"sslpp_iic/{name}"]["transforms"] for name in ("crop", "grey")] == ["crop", "grey"]


def test_what_the_networks_see(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("crop", "grey", None):
        weights = replace(IIC, variant=name)
        assert TINY.channels(weights) == input_of(name or "sobel", 32).channels  # type: ignore[arg-type]
    for task in ("colorization", "context", "rotation", "aet"):
        monkeypatch.setattr(sys, "argv", [f"sslpp_{task}", "--backbone", "nin3"])
        parts = recipe(f"sslpp_{task}")
        (view,) = parts["build"](parts["parse"]()).task.views(1)
        assert PAPER.channels(replace(ROTATION, recipe=f"sslpp_{task}")) == view.input().channels
