"""SSL++'s tables: what the rows are measured on, and the paper's sizes."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.tables.matching import needs_of
from fastpsl.tables.paper_file import TABLES
from fastpsl.tables.rows import (
    BLOCK_PROBE,
    CLUSTERS,
    COUPLED,
    KNN,
    STL_BLOCK_PROBE,
    TSNE,
    Evaluation,
    Weights,
)
from fastpsl.tasks.pseudo_labels.iic import input_of
from tests.tables.table_results import PAPER, TINY, report

IIC = Weights("resnet34_iic", "sslpp_iic", "end_to_end")
ROTATION = Weights("nin4", "sslpp_rotation", "end_to_end")


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


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sslpp/3", "0.1: Rotation [8] 79.5, its cells' mean is 79.1."),
        ("sslpp/3-stl", "0.1: Rotation [8] 75.1, its cells' mean is 75.9."),
        ("sslpp/5", "ours of our cells."),
        ("sslpp/5-stl", "0.1: Ours+Color. 53.4, its cells' mean is 53.3."),
        ("sslpp/8", "0.1: Color. [6] 62.6, its cells' mean is 63.5."),
        ("sslpp/11-stl", "ours of our cells."),
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
        ("sslpp_colorization", "lambda_0.05", iic), ("sslpp_context", "lambda_0.05", iic),
        (rotation, None, iic), ("sslpp_aet", None, iic),
    ]  # fmt: skip
    assert [one[2] for one in words("sslpp/fig6", "λ = 0")] == [None] * 4
    names = ("3", "4", "9", "11", "12", "13", "fig6")
    evaluations = {need[1] for name in names for need in needs_of(TABLES[f"sslpp/{name}"])}
    assert evaluations == {BLOCK_PROBE, KNN, CLUSTERS}  # one run of the classifiers serves all of them


def test_wide_tables_have_panels_in_lines(tmp_path: Path) -> None:
    from fastpsl.tables.chart import chart

    figure = chart(report(tmp_path, "sslpp/8", PAPER))
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels][:5] == ["20: B2", "20: B3", "20: B4", "20: Avg.", "100: B2"]
    assert len(panels) == 16 and figure.get_size_inches()[0] < 15
    figure = chart(report(tmp_path, "sslpp/6", PAPER))
    assert len([axis for axis in figure.axes if axis.get_visible()]) == 7


def test_the_papers_sizes() -> None:
    """The evaluation of Table II, and the recipes' own values."""
    blocks, stl, knn, tsne = map(PAPER.evaluation_values, (BLOCK_PROBE, STL_BLOCK_PROBE, KNN, TSNE))
    for name, value in find_recipe("block_probe").paper.items():
        assert name == "heads" or blocks[name] == value
    assert (blocks["batch_size"], stl["batch_size"]) == (128, 64)
    assert {name for name, value in stl.items() if value != blocks[name]} == {"batch_size"}
    few = [Evaluation(f"blocks/{number}", "block_probe", "block_probe") for number in (20, 100, 400, 1000)]
    assert [PAPER.evaluation_values(one)["labels_per_class"] for one in few] == [20, 100, 400, 1000]
    supervised = [Weights("nin4", "supervised", "end_to_end", str(number)) for number in (20, 1000)]
    assert [PAPER.training_values(one)["labels_per_class"] for one in supervised] == [20, 1000]
    assert knn["k"] == (1, 3, 5, 10, 15, 20) and tsne["num"] == 1000
    clusters = [PAPER.variant_values(replace(IIC, variant=number)) for number in ("10", "100")]
    assert clusters == [{"num_clusters": 10}, {"num_clusters": 100}]
    tasks = ("colorization", "context", "rotation", "aet")
    usual = [PAPER.recipe_values(f"sslpp_{task}")["semantic_weight"] for task in tasks]
    assert usual == [1.0, 1.0, 0.05, 0.05]
    for name in ("crop", "grey"):
        assert PAPER.variant_values(replace(IIC, variant=name))["augment"] == name


def test_what_the_networks_see(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("crop", "grey", None):
        weights = replace(IIC, variant=name)
        assert TINY.channels(weights) == input_of(name or "sobel", 32).channels  # type: ignore[arg-type]
    for task in ("colorization", "context", "rotation", "aet"):
        monkeypatch.setattr(sys, "argv", [f"sslpp_{task}", "--backbone", "nin3"])
        made: Any = find_recipe(f"sslpp_{task}")
        (view,) = made.build(made.parse()).task.views(1)
        assert PAPER.channels(replace(ROTATION, recipe=f"sslpp_{task}")) == view.input().channels
