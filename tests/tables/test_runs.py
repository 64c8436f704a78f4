"""`fastpsl runs` against plain loops over the JSON files; runs of all states, and files that are damaged."""

import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len

from fastpsl.commands.runs import age
from fastpsl.tables.runs import SILENT_S, Run, find_runs
from tests.cli import Cli, refused
from tests.programs import interpreted


def write_run(
    folder: Path, *, state: str = "finished", accuracies: Any = (0.25, 0.5, 0.375), **changes: Any
) -> Path:
    """Write a run's files as a training of three stages of ten steps does, each with a look at its end."""
    science = {"batch_size": 16, "lr": 0.1, "backbone": "resnet18", "plan": "psl", "seed": 0} | changes
    options = {"data": "/data/photos/", "out": str(folder), "workers": 2} | science
    config = {"options": options, "science": {"recipe": "simclr_r50", "data_digest": "a" * 32} | science}
    lines, looks, stages = list[Any](), list[Any](), list[Any]()
    for number in (1, 2, 3):
        line = {"stage": f"S{number}", "block": f"B{number}", "knn_accuracy": 0.125 * number}
        lines.append({"run_step": 0, "epoch": 0.0} | line)
        counts = {"seconds": 5.5 * number, "images": 160 * number, "joules": 100.0 * number}
        line |= {"run_step": 10 * number, "epoch": number, "knn_untrained": line["knn_accuracy"]} | counts
        looks += [line | {"knn_accuracy": accuracies[number - 1]}] if number <= len(accuracies) else []
        stage = {"stage": f"S{number}", "seconds": 4.0 + number, "val": {}}
        stages.append(stage | {"num_steps": 10, "num_steps_planned": 10})
    steps = [{"run_step": step, "stage": "S1"} for step in range(1, 31 if state == "finished" else 18)]
    folder.mkdir(parents=True)
    for name, record in (
        ("config", config | {"images": {"train": 160, "val": 40}}),
        ("status", {"state": state, "stage": 3, "step": 10, "reason": ""}),
        ("environment", {"gpu": None, "commit": "c0ffee", "packages": {"torch": "2.9"}}),
        *([("results", stages)] if state == "finished" else []),
    ):
        (folder / f"{name}.json").write_text(json.dumps(record))
    for name, rows in (("probe", lines + looks), ("metrics", steps)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_figures_are_those_of_the_files(tmp_path: Path) -> None:
    run = Run.of(write_run(tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "probe.jsonl").read_text().splitlines()]
    accuracies = {}
    for line in lines:
        if line["run_step"]:
            accuracies[line["run_step"]] = line["knn_accuracy"]
    assert run.best is not None and (run.best.run_step, run.best.knn) == (20, max(accuracies.values()))
    assert (run.best.untrained, run.best.stage, run.best.epoch) == (0.25, "S2", 2)
    equal = Run.of(write_run(tmp_path / "equal", accuracies=(0.25, 0.5, 0.5))).best
    assert equal is not None and equal.run_step == 20  # the first of them
    seconds = sum(stage["seconds"] for stage in json.loads((tmp_path / "run" / "results.json").read_text()))
    assert run.images_per_s == 3 * 10 * 16 / seconds == 480 / 18
    assert (run.seconds, run.images, run.joules) == (16.5, 480, 300.0)
    assert (run.steps, run.steps_planned, run.num_images, run.state) == (30, 30, 160, "finished")


def test_a_run_of_an_older_version_has_what_its_stages_tell(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "probe.jsonl").read_text().splitlines()]
    rows.insert(4, rows[3] | {"run_step": 15, "stage": "S2", "block": "B2"})
    names = ("seconds", "images", "joules", "knn_untrained")
    rows = [{name: value for name, value in row.items() if name not in names} for row in rows]
    (folder / "probe.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Run.of(folder)
    assert [look.seconds for look in run.looks] == [5.0, None, 11.0, 18.0]
    assert [look.images for look in run.looks] == [160, 240, 320, 480]
    assert [look.untrained for look in run.looks] == [0.125, 0.25, 0.25, 0.375]
    assert (run.seconds, run.joules) == (18.0, None)


def test_a_run_at_work_is_as_far_as_its_files(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", state="running", accuracies=[0.25])
    config = json.loads((folder / "config.json").read_text()) | {"steps": 30}
    (folder / "config.json").write_text(json.dumps(config))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"run_step": 18, "sta')
    run = Run.of(folder)
    assert (run.steps, run.steps_planned, run.seconds, run.images_per_s) == (17, 30, 5.5, 160 / 5.5)


def aged(folder: Path, seconds: float) -> Path:
    for path in folder.iterdir():
        os.utime(path, (time.time() - seconds,) * 2)
    return folder


@pytest.mark.parametrize(
    ("host", "is_locked", "seconds", "state"),
    [
        (None, False, 1, "running"),  # an older version, or one whose lock cannot be asked
        (None, False, SILENT_S + 60, "killed"),
        (socket.gethostname(), True, 1, "running"),
        (socket.gethostname(), True, SILENT_S + 60, "silent"),
        (socket.gethostname(), False, 1, "killed"),
        ("another-machine", False, 1, "running"),
        ("another-machine", False, SILENT_S + 60, "killed"),
        ("", False, 1, "killed"),
    ],
)
def test_whether_a_run_is_still_at_work(
    tmp_path: Path, host: str | None, is_locked: bool, seconds: float, state: str
) -> None:
    folder = aged(write_run(tmp_path / "run", state="running"), seconds)
    if host is None:
        assert Run.of(folder).state == state
        return
    with open(folder / ".lock", "w") as lock:
        print(host, file=lock, flush=True)
        if is_locked:
            fcntl.flock(lock, fcntl.LOCK_EX)
        assert Run.of(folder).state == state


@pytest.mark.parametrize("name", [".lock", "probe.jsonl", "metrics.jsonl", "status.json", "environment.json"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_never_ends_is_not_read(
    tmp_path: Path, cli: Cli, name: str, make: Callable[[Path], Any]
) -> None:
    path = write_run(tmp_path / "bad", state="running") / name
    path.unlink(missing_ok=True)
    make(path)
    outcome = cli("runs", tmp_path)
    told = f"{tmp_path / 'bad'}: {name} is no regular file" in outcome.out
    assert outcome.code == 0 and told == (name not in (".lock", "metrics.jsonl"))


@pytest.mark.parametrize("name", ["config", "status", "results", "environment", "probe", "metrics"])
def test_damaged_files_are_told_in_the_row(tmp_path: Path, cli: Cli, name: str) -> None:
    path = write_run(tmp_path / "bad") / name
    path = path.with_suffix(".jsonl" if name in ("probe", "metrics") else ".json")
    path.write_text('{"options": {')
    write_run(tmp_path / "good")
    outcome = cli("runs", tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    row = next(line for line in outcome.out.splitlines() if line.startswith("bad"))
    told = f"{tmp_path / 'bad'}: {name}.json" in outcome.out
    assert ("damaged" in row) == told == (path.suffix == ".json")
    assert re.search(r"^good +finished", outcome.out, re.MULTILINE)


@pytest.mark.parametrize("value", ["many", None, [], float("nan"), float("inf"), True, {}, 10**400])
def test_a_number_that_is_none(tmp_path: Path, cli: Cli, value: Any) -> None:
    folder = write_run(tmp_path / "run")
    for name in ("results.json", "config.json", "probe.jsonl"):
        text = (folder / name).read_text()
        number = (
            r'("(?:num_steps|seconds|batch_size|train|knn_accuracy|epoch|images|joules|block)": )[\d."B]+'
        )
        (folder / name).write_text(re.sub(number, lambda m: m[1] + json.dumps(value), text))
    assert cli("runs", tmp_path).code == 0
    assert json.loads(cli("runs", tmp_path, "--json").out)[0]["best"] is None


def test_the_newest_comes_first_and_other_config_files_do_not_count(tmp_path: Path, cli: Cli) -> None:
    for number, name in enumerate(("old", "deep/er/run", "new")):
        aged(write_run(tmp_path / name), 1000 - 100 * number)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["ResNet"]}')
    write_run(tmp_path / "new" / "checkpoints" / "hidden")
    rows = cli("runs", tmp_path).out.splitlines()
    assert [row.split()[0] for row in rows[1:]] == ["new", "deep/er/run", "old"]
    assert [row["folder"] for row in json.loads(cli("runs", tmp_path, "--json").out)] == [
        str(run.folder) for run in find_runs(tmp_path)
    ]
    one = cli("runs", tmp_path / "old").out.splitlines()
    assert len(one) == 2 and one[1].startswith("old ")


def test_rows_have_the_figures_at_any_width(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "a-run-with-a-long-name[b]", data="<b>/x.beton")
    wide = cli("runs", tmp_path).out.splitlines()
    words = ["a-run-with-a-long-name[b]", "finished", "simclr_r50", "x.beton", "160", "50.0 (25.0)"]
    words += ["2, S2", "0:00:16"]
    assert len(wide) == 2 and all(word in wide[1] for word in words)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("fastpsl.console.grid.plain", lambda _: SimpleNamespace(isatty=lambda: True))
    narrow = cli("runs", tmp_path).out.splitlines()
    assert max(map(len, narrow)) <= 80 and all(word in "".join(narrow) for word in words[1:])
    monkeypatch.setenv("COLUMNS", "60")
    (tmp_path / "日本語の実験-001").symlink_to(tmp_path / "a-run-with-a-long-name[b]")
    narrowest = cli("runs", tmp_path).out.splitlines()
    assert max(map(cell_len, narrowest)) <= 60 and all(word in "\n".join(narrowest) for word in words)


@pytest.mark.parametrize(
    ("seconds", "words"), [(1, "now"), (150, "2 min ago"), (7200, "2 h ago"), (9e5, "10 d ago")]
)
def test_ages(seconds: float, words: str) -> None:
    assert age(seconds) == words


def test_what_holds_no_run_is_refused(cwd: Path, cli: Cli) -> None:
    refused(cli("runs", cwd), str(cwd), "config.json")
    refused(cli("runs", cwd / "absent"), "absent")
    (cwd / "file").touch()
    refused(cli("runs", cwd / "file"), "is a file")
    refused(cli("runs"), "runs: no such")


def test_a_run_has_its_name_from_within(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_run(tmp_path / "run-7"))
    for folder in (".", "../run-7"):
        assert cli("runs", folder).out.splitlines()[1].startswith("run-7 ")


def test_five_hundred_runs_are_listed_without_torch(tmp_path: Path) -> None:
    one = write_run(tmp_path / "0")
    for number in range(1, 500):
        (tmp_path / str(number)).mkdir()
        for path in one.iterdir():
            os.link(path, tmp_path / str(number) / path.name)
    program = "import sys; from fastpsl.cli import main; main(); print({'torch', 'numpy'} & {*sys.modules})"
    lines = interpreted(program, "runs", tmp_path).stdout.splitlines()
    assert len(lines) == 502 and lines[-1] == "set()"
