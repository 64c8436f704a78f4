"""Committed results follow bench/schema.py; broken ones are refused with the place of the error."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bench.schema import (
    REHEARSAL,
    SCHEMA,
    command_line,
    environment,
    finish,
    short_name,
    spread,
    validate,
    write_result,
)

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "bench" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_committed_results(path: Path) -> None:
    validate(json.loads(path.read_text()))


def test_there_is_a_result_of_throughput_with_its_chart() -> None:
    assert "throughput.json" in {path.name for path in RESULTS}
    assert (ROOT / "bench" / "results" / "throughput.png").read_bytes().startswith(b"\x89PNG")


def throughput_result() -> dict[str, Any]:
    def row(measured: str, decoder: str | None, stage: str | None, *values: float) -> dict[str, Any]:
        labels = {"measured": measured, "decoder": decoder, "num_views": 1, "stage": stage}
        return {**labels, "unit": "samples/s", **spread(values)}

    ratio = {"what": "both / min(loader, step)", "decoder": "ffcv", "num_views": 1, "stage": "S1"}
    machine = environment()
    return {
        "schema": SCHEMA, "bench": "throughput", "command": command_line(), "environment": machine,
        "data": {"num_samples": 7}, "settings": {"repeats": 3},
        "rows": [
            row("loader", "ffcv", None, 9, 8, 10), row("step", None, "S1", 4, 5, 6),
            row("both", "ffcv", "S1", 4, 4, 5),
        ],
        "ratios": [{**ratio, **spread([1.0, 0.8, 5 / 6])}],
        "not_measured": [{"what": "ffcv Loader", "reason": "not installed"}], "notes": finish(machine),
    }  # fmt: skip


def test_where_there_is_no_git_the_environment_says_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTPSL_COMMIT", "0123456789ab and changes")
    assert environment()["commit"] == "0123456789ab and changes"


def test_a_rehearsal_is_marked_so(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = environment() | {"load_average_before": 0.0}
    assert finish(machine) == []
    monkeypatch.setenv("FASTPSL_REHEARSAL", "1")
    assert finish(machine) == [REHEARSAL]
    assert finish(machine | {"load_average_before": 9.0})[1:] == [REHEARSAL]


def test_a_result_is_accepted_and_written(tmp_path: Path) -> None:
    result = throughput_result()
    write_result(tmp_path / "new" / "result.json", result)
    assert json.loads((tmp_path / "new" / "result.json").read_text()) == result
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["result.json"]


BREAKAGES = {
    "result: lacks rows": lambda r: r.pop("rows"),
    "result: has host": lambda r: r.update(host="mine"),
    "result.schema: is 9": lambda r: r.update(schema=9),
    "result.rows: is dict": lambda r: r.update(rows={}),
    "environment: lacks load_average_before": lambda r: r["environment"].pop("load_average_before"),
    "environment.num_cores: is str": lambda r: r["environment"].update(num_cores="2"),
    "environment.num_cores: is bool": lambda r: r["environment"].update(num_cores=True),
    "data: lacks num_samples": lambda r: r["data"].clear(),
    "settings: lacks repeats": lambda r: r["settings"].clear(),
    "rows[0]: lacks": lambda r: r["rows"].insert(0, 17),
    "rows[1]: lacks unit": lambda r: r["rows"][1].pop("unit"),
    "rows[0].median: is 9.5": lambda r: r["rows"][0].update(median=9.5),
    "rows[0].quartile_3": lambda r: r["rows"][0].update(quartile_3=9.0),
    "rows[0].values: 4 of them for 3": lambda r: r["rows"][0]["values"].append(9.0),
    "result.bench: is 'thruput'": lambda r: r.update(bench="thruput"),
    "rows[1]: lacks decoder": lambda r: r["rows"][1].pop("decoder"),
    "rows[2].num_views: is str": lambda r: r["rows"][2].update(num_views="1"),
    "rows[0].values: must be finite": lambda r: r["rows"][0]["values"].__setitem__(0, float("nan")),
    "rows[2].values: must be finite": lambda r: r["rows"][2]["values"].__setitem__(0, -4.0),
    "ratios[0]: lacks what": lambda r: r["ratios"][0].pop("what"),
    "not_measured[0]: lacks reason": lambda r: r["not_measured"][0].pop("reason"),
    "notes: must be strings": lambda r: r["notes"].append(1),
    "rows: the loader of": lambda r: r["rows"].pop(0),
    "rows: the step of": lambda r: r["rows"].pop(1),
    "rows: none of loader and step together": lambda r: r.update(rows=r["rows"][1:2]),
    "has 2 values, both together 3": lambda r: r["rows"][1].update(spread([4.0, 5.0])),
    "rows: the ratio of": lambda r: r["ratios"].clear(),
    "is 0.9, its rows say 1.0000": lambda r: r["ratios"][0].update(spread([0.9, 0.8, 5 / 6])),
    "rows: some stand there twice": lambda r: r["rows"].append(r["rows"][0]),
}


@pytest.mark.parametrize("message", BREAKAGES)
def test_a_broken_result_is_refused(message: str, tmp_path: Path) -> None:
    result = copy.deepcopy(throughput_result())
    BREAKAGES[message](result)
    with pytest.raises(ValueError) as refused:
        write_result(tmp_path / "result.json", result)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "result.json").exists()


def test_repeats_are_as_many_as_are_said_where_no_clock_ends_them(tmp_path: Path) -> None:
    result = throughput_result() | {"bench": "loader"}
    validate(result)
    result["rows"][0] |= spread([9.0, 8.0])
    with pytest.raises(ValueError, match="2 of them for 3"):
        validate(result)


def test_names_of_machines_in_files() -> None:
    for name, short in (("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"),
                        ("NVIDIA GeForce RTX 5090", "rtx-5090"), (None, "cpu")):  # fmt: skip
        assert short_name({"gpu": name}) == short


def test_spread_is_the_inclusive_quartiles() -> None:
    expected = {"median": 3.0, "quartile_1": 2.0, "quartile_3": 4.0, "values": [5.0, 1.0, 3.0, 2.0, 4.0]}
    assert spread([5, 1, 3, 2, 4]) == expected
    assert spread([7])["quartile_1"] == spread([7])["quartile_3"] == 7.0


def test_the_command_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    arguments = ["bench/x.py", "--data", str(tmp_path / "a.beton"), "--views", "1"]
    assert command_line(arguments) == "python bench/x.py --data a.beton --views 1"
