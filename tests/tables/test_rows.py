"""The tables' rows: what they are measured on, by which evaluations, and with which values. See golden.py."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastpsl.scripts.recipe_files import find_recipe
from fastpsl.tables.data_sets import OTHER_DATA, PAPER_IMAGES
from fastpsl.tables.matching import needs_of
from fastpsl.tables.paper_file import TABLES
from fastpsl.tables.rows import BLOCK_PROBE, CLUSTERS, KNN, Evaluation
from fastpsl.tables.scales import SCALES
from fastpsl.tasks.pseudo_labels.iic import input_of
from tests.tables.golden import ROWS, SIZES, sections, size_lines, table_lines
from tests.tables.table_results import IIC, PAPER, ROTATION, TINY, report


@pytest.mark.parametrize("name", TABLES)
def test_what_the_rows_are_measured_on(name: str) -> None:
    assert table_lines(TABLES[name]) == sections(ROWS)[name]


@pytest.mark.parametrize("scale", SCALES)
def test_the_values_of_trainings_labels_and_evaluations(scale: str) -> None:
    assert size_lines(scale) == sections(SIZES)[scale]


def test_no_other_tables_and_scales_are_read() -> None:
    assert (sections(ROWS).keys(), sections(SIZES).keys()) == (TABLES.keys(), SCALES.keys())


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


def test_wide_tables_have_panels_in_lines(tmp_path: Path) -> None:
    from fastpsl.tables.chart import chart

    figure = chart(report(tmp_path, "sslpp/8", PAPER))
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels][:5] == ["20: B2", "20: B3", "20: B4", "20: Avg.", "100: B2"]
    assert len(panels) == 16 and figure.get_size_inches()[0] < 15
    figure = chart(report(tmp_path, "sslpp/6", PAPER))
    assert len([axis for axis in figure.axes if axis.get_visible()]) == 7


def test_a_chart_names_the_papers_images_but_for_evaluations_of_other_data(tmp_path: Path) -> None:
    from fastpsl.tables.chart import chart

    for name, words in (("sslpp/6", "paper, CIFAR-10"), ("psl/8", "paper")):
        (legend,) = chart(report(tmp_path, name, PAPER)).legends
        assert legend.get_texts()[0].get_text() == words


def test_what_the_networks_see(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("crop", "grey", None):
        weights = replace(IIC, variant=name)
        assert TINY.channels(weights) == input_of(name or "sobel", 32).channels  # type: ignore[arg-type]
    for task in ("colorization", "context", "rotation", "aet"):
        monkeypatch.setattr(sys, "argv", [f"sslpp_{task}", "--backbone", "nin3"])
        made: Any = find_recipe(f"sslpp_{task}")
        (view,) = made.build(made.parse()).task.views(1)
        assert PAPER.channels(replace(ROTATION, recipe=f"sslpp_{task}")) == view.input().channels


def test_data_that_evaluations_read_is_known() -> None:
    evaluations = {need[1] for table in TABLES.values() for need in needs_of(table)}
    reading = [one for one in evaluations if one.reads]
    assert {one.protocol for one in reading} == set(PAPER_IMAGES)
    assert {name for one in reading for name in one.reads} == set(OTHER_DATA)
    assert not any(one.reads for one in evaluations if one.protocol in ("linear/vissl", "linear/sslpp"))


def test_evaluations_of_one_protocol_have_one_data_set() -> None:
    """Digests are compared by the protocol's name."""
    seen: dict[str, Evaluation] = {}
    for table in TABLES.values():
        for _, evaluation in needs_of(table):
            other = seen.setdefault(evaluation.protocol, evaluation)
            assert other.reads == evaluation.reads


def test_one_run_of_the_classifiers_serves_several_tables() -> None:
    names = ("3", "4", "9", "11", "12", "13", "fig6")
    evaluations = {need[1] for name in names for need in needs_of(TABLES[f"sslpp/{name}"])}
    assert evaluations == {BLOCK_PROBE, KNN, CLUSTERS}
