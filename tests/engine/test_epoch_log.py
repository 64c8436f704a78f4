"""Test epochs.jsonl: a line for each epoch, also where a run goes on from before its last line."""

import json
from pathlib import Path

import pytest

from fastpsl.engine.reporter import EpochLog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    log = EpochLog(tmp_path / "epochs.jsonl", 0)
    for run_step, epoch in ((1, 0), (10, 1), (11, 1), (20, 2)):
        add(log, run_step, epoch, 0)
    return log.path


def add(log: EpochLog, run_step: int, epoch: float, figure: int) -> None:
    log.add({"run_step": run_step, "epoch": epoch, "stage": "E", "figure": figure})


def places(path: Path) -> list[tuple[int, float, int]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["run_step"], line["epoch"], line["figure"]) for line in lines]


def test_a_line_replaces_those_of_its_place_and_later_ones(path: Path) -> None:
    log = EpochLog(path, 20)
    add(log, 20, 2, 1)
    assert places(path) == [(1, 0, 0), (10, 1, 0), (11, 1, 0), (20, 2, 1)]
    add(log, 11, 1, 2)
    assert places(path) == [(1, 0, 0), (10, 1, 0), (11, 1, 2)]


def test_what_comes_after_the_step_of_a_resume_is_removed(path: Path) -> None:
    EpochLog(path, 10)
    assert places(path) == [(1, 0, 0), (10, 1, 0)]
