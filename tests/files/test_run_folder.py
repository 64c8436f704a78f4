"""Test the gate of a run's records and of other JSON: kinds, bounds, and files that are none."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastpsl.files.json_records import MAX_BYTES, Form, NoRecord
from fastpsl.files.run_folder import CONFIG, ENVIRONMENT, RESULTS, STATUS, count_lines, last_row, read_lines


def of(value: Any) -> Callable[[Path], Any]:
    return lambda path: path.write_text(json.dumps(value))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda path: path.touch(), r"is no JSON \(line 1, column 1\)"),
    "half": (lambda path: path.write_text('{\n"options": {'), "is no JSON"),
    "two": (lambda path: path.write_text("{} {}"), "holds more than one value"),
    "nested": (lambda path: path.write_text("[" * 200_000), "is nested too deeply"),
    "closed": (lambda path: path.write_text('{"a":' * 40 + "1" + "}" * 40), "is nested too deeply"),
    "digits": (lambda path: path.write_text('{"a": %s}' % ("9" * 5000)), "integer of more than 64 bits"),
    "65 bits": (of({"a": [[-(1 << 64)]]}), "integer of more than 64 bits"),
    "a surrogate": (lambda path: path.write_text(r'{"a": {"\ud83d": 1}}'), "a text that is no Unicode"),
    "a NUL": (of({"options": {"data": "a\0b"}}), "a text that is no Unicode"),
    "other bytes": (lambda path: path.write_bytes(b'{"a": "\xff"}'), "is no text in UTF-8"),
    "large": (lambda path: path.write_bytes(b" " * (MAX_BYTES + 1)), "has 16,777,217 bytes, and at most"),
    "a folder": (Path.mkdir, "is no regular file"),
    "a pipe": (os.mkfifo, "is no regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
    "a number": (of(7), "is no (list of )?record"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_no_record_is_told_in_one_line(tmp_path: Path, damage: str) -> None:
    make, why = DAMAGE[damage]
    make(tmp_path / CONFIG.name)
    with pytest.raises(NoRecord, match=why) as refused:
        CONFIG.of(tmp_path)
    text = str(refused.value)
    assert text == f"{tmp_path / CONFIG.name} {refused.value.why}" and len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("form", "record", "why"),
    [
        (CONFIG, {"options": []}, r"holds options \[\], not a record or null"),
        (CONFIG, {"science": {"recipe": 7}}, "holds science.recipe 7, not a text or null"),
        (CONFIG, {"science": {"initial_weights": {"path": ["x.py"]}}}, "holds science.initial_weights.path"),
        (CONFIG, {"options": {"data": {"a": "b" * 99}}}, r"holds options.data \{'a': 'b{33}, not"),
        (CONFIG, {"command": "fastpsl"}, "holds command 'fastpsl', not a list of texts"),
        (ENVIRONMENT, {"world_size": 0}, "holds world_size 0, not 1 to 65,536 or null"),
        (STATUS, {"state": None, "step": -1}, "holds step -1"),
        (RESULTS, [{}, {"val": {"top1": "x"}}], "holds val"),
        (RESULTS, [[]], "is no record"),
        (RESULTS, {"num_steps": 3}, "is no list of records"),
    ],
)
def test_a_field_of_another_kind_is_named(tmp_path: Path, form: Form, record: Any, why: str) -> None:
    (tmp_path / form.name).write_text(json.dumps(record))
    with pytest.raises(NoRecord, match=why):
        form.of(tmp_path)


def test_a_record_is_what_was_written(tmp_path: Path) -> None:
    """Also bytes of names that are no UTF-8, losses that are no number, and seeds of 64 bits."""
    config = {
        "options": {"data": "\udcff.beton", "lr": 0.1},
        "science": {"recipe": "é", "seed": (1 << 64) - 1},
    }
    (tmp_path / CONFIG.name).write_text(json.dumps(config))
    assert CONFIG.of(tmp_path, "options", "science.recipe") == config
    (tmp_path / RESULTS.name).write_text('[{"loss_end": NaN, "val": {"loss": Infinity, "top1": null}}]')
    (summary,) = RESULTS.of(tmp_path)
    assert summary["loss_end"] != summary["loss_end"] and summary["val"] == {
        "loss": float("inf"),
        "top1": None,
    }
    with pytest.raises(FileNotFoundError):
        STATUS.of(tmp_path)
    for needed in ("steps", "images.train"):
        with pytest.raises(NoRecord, match=f"has no {needed}"):
            CONFIG.of(tmp_path, "science.recipe", needed)


ROW = {"run_step": 2, "stage": "S1", "level": 1, "step": 2, "lr": 0.1, "loss": None, "note": {"by": "hand"}}


@pytest.mark.parametrize(
    "change",
    [
        {"run_step": -1}, {"run_step": True}, {"step": "x"}, {"step": -4}, {"stage": 1}, {"lr": "0.1"},
        {"loss": [1]}, {"epoch": {}}, {"knn_accuracy": "high"}, {"block": 3}, {"settled": 1},
        {"num_classes": None}, {"other": 10**30}, {"other": "\ud83d"},
    ],
)  # fmt: skip
def test_a_line_with_a_field_of_another_kind_counts_as_damaged(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [ROW, ROW | {"loss": float("nan")}, ROW | change, ROW]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match="line 3 cannot be read; 2 lines"):
        read = [line.row for line in read_lines(path)]
    assert read[0] == ROW and len(read) == 2
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]) + "{")
    assert last_row(path) == {**ROW, "loss": pytest.approx(float("nan"), nan_ok=True)}


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_lines_are_those_of_a_regular_file(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path / "probe.jsonl")
    with pytest.raises(ValueError, match=r"probe\.jsonl is no regular file"):
        list(read_lines(tmp_path / "probe.jsonl"))
    assert not list(read_lines(tmp_path / "absent.jsonl"))


def test_a_file_that_claims_a_terabyte_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    os.truncate(path, 1 << 40)
    with pytest.warns(UserWarning, match="line 2 cannot be read; 1 lines"):
        assert [line.row for line in read_lines(path)] == [ROW]
    assert count_lines(path) == 1
