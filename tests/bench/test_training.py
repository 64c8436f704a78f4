"""bench/training.py at its smallest, as people call it, and its ratios by arithmetic. No figure is judged."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench import peers
from bench.interleaved import Rates
from bench.schema import validate
from bench.training import Options, tabulate, works_of
from fastpsl.pipelines.sample.betons import sample_paths
from tests.programs import ROOT, run


@pytest.mark.nightly
def test_a_run_trains_ours_and_the_peers_and_names_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "training.json"
    process = run(
        ROOT / "bench" / "training.py", "--stages", "simclr:S1", "supervised:E", "--peers", "lightly",
        "dali_resnet50", "--batch-size", "4", "--size-px", "32", "--workers", "1", "--repeats", "1",
        "--seconds", "0.001", "--out", str(out), environment={"COLUMNS": "120"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    result = json.loads(out.read_text())
    validate(result)
    packages = {"lightly": "lightly", "dali_resnet50": "nvidia"}
    there = {kind for kind, package in packages.items() if find_spec(package)}
    rows = [(row["trained_by"], row["recipe"], row["stage"]) for row in result["rows"]]
    ours = [("training", "simclr", "S1"), ("training", "supervised", "E")]
    assert sorted(rows, key=str) == sorted([*ours, *((kind, None, None) for kind in there)], key=str)
    missing = {line["what"]: line["reason"] for line in result["not_measured"]}
    assert missing == {peers.TRAINING[kind].title: "not installed" for kind in packages.keys() - there}
    assert {ratio["peer"] for ratio in result["ratios"]} == there


def rates(kind: str, recipe: str, stage: str, *values: float) -> Rates:
    work = peers.Work(kind, "", "", 8, 2, 224, "cpu", recipe=recipe, stage=stage)
    return Rates(kind, work, 1, 1.0, list(values), [2.0] * len(values))


def test_ratios_are_of_the_same_method_repeat_by_repeat() -> None:
    rows, ratios = tabulate(
        [
            rates("training", "simclr", "E", 30.0, 40.0),
            rates("training", "supervised", "E", 90.0, 90.0),
            rates("lightly", "", "", 10.0, 8.0),
        ]
    )
    assert [(row["trained_by"], row["recipe"], row["median"]) for row in rows] == [
        ("training", "simclr", 35.0),
        ("training", "supervised", 90.0),
        ("lightly", None, 9.0),
    ]
    (ratio,) = ratios
    assert (ratio["recipe"], ratio["stage"], ratio["peer"], ratio["values"]) == (
        "simclr", "E", "lightly", [3.0, 5.0],
    )  # fmt: skip


def test_ours_come_first_and_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.peers.peer._is_installed", lambda package: package != "lightly")
    work = peers.Work("", str(sample_paths().train), "", 8, 2, 224, "cpu")
    works, missing = works_of(Options(peers=("lightly", "dali_resnet50")), work)
    assert [each.kind for each in works.values()] == ["training", "training", "dali_resnet50"]
    assert missing == [{"what": peers.TRAINING["lightly"].title, "reason": "not installed"}]


@pytest.mark.parametrize("stages", [(), ("simclr",), ("nothing:E",)])
def test_stages_that_cannot_be_are_refused(stages: tuple[str, ...]) -> None:
    Options().check()
    with pytest.raises(ValueError, match="--stages"):
        Options(stages=stages).check()
