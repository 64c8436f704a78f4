"""Records that cannot be read are listed with the reason, and the others are found."""

import json
from pathlib import Path

import pytest

from fastpsl.tables.results import index_runs
from tests.tables.table_results import put


@pytest.mark.parametrize("name", ["config.json", "status.json", "results.json"])
def test_a_run_whose_record_is_nested_without_end(tmp_path: Path, name: str) -> None:
    for file, text in (
        ("config.json", '{"options": {}, "science": {}}'),
        ("status.json", '{"state": "finished"}'),
    ):
        (tmp_path / file).write_text(text)
    assert len(index_runs(tmp_path).runs) == 1
    (tmp_path / name).write_text("[" * 200_000)
    index = index_runs(tmp_path)
    assert not index.runs and list(index.unreadable) == [tmp_path / "config.json"]


@pytest.mark.parametrize("num_train", [float("inf"), float("nan"), "many", None, []])
def test_a_result_with_a_number_that_is_none(tmp_path: Path, num_train: object) -> None:
    path = put(tmp_path)
    record = json.loads(path.read_text())
    record["data"]["num_train"] = num_train
    path.write_text(json.dumps(record))
    assert list(index_runs(tmp_path).unreadable) == [path]


def test_a_result_that_is_nested_without_end(tmp_path: Path) -> None:
    path = put(tmp_path)
    assert len(index_runs(tmp_path).results) == 1
    path.write_text('{"a":' * 200_000)
    assert "cannot be read" in index_runs(tmp_path).unreadable[path]
