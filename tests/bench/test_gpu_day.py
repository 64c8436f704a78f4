"""bench/gpu_day/: its parts fit, rehearse on a CPU, and lose no more than the steps that hang or fail.

Packed images are restored unchanged, and experiments come back whole or not at all.
"""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import tyro

from bench.archives import check_experiment, put_experiment, read_archive
from bench.evidence.data import _cifar10, _cifar10_arrays
from bench.evidence.plan import read_plan
from bench.evidence.results import _commit_of
from bench.evidence.run import Options
from bench.gpu_day import report
from bench.pack_images import joined, pack, unpack
from bench.schema import REHEARSAL, environment, short_name, validate
from bench.step import Mode
from fastpsl.files.digest import sha256_of_file
from fastpsl.pipelines.decoders.choose import NAMES
from fastpsl.scripts.command_line import parse

ROOT = Path(__file__).resolve().parents[2]
FINISH_S = 15
MEASURE, METHODS = (
    tuple("abcdefghij"),
    ("uic", "iic", "sslpp", "psl", "deepcluster", "worth"),
)
PART_S = dict.fromkeys(MEASURE, 240) | dict.fromkeys(METHODS, 420)


def call(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=3600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **environment},
    )  # fmt: skip


def steps(part: str, small: str = "") -> dict[str, tuple[int, list[str]]]:
    """Return name → (last second, command) of a part at full size, or of its rehearsal."""
    process = call(f"bash bench/gpu_day/part.sh {part}", LIST="1", SMALL=small)
    assert process.returncode == 0 and not process.stderr
    lines = [line.split("\t") for line in process.stdout.splitlines()]
    limits = {name: (int(last), shlex.split(command)) for name, last, command in lines}
    assert len(limits) == len(lines) >= 1
    return limits


Plan = dict[str, dict[str, tuple[int, list[str]]]]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return {part: steps(part) for part in PART_S}


@pytest.mark.slow
def test_parts_fit_their_minutes_and_their_commands_are_understood(plan: Plan) -> None:
    results = []
    for part, listed in plan.items():
        assert max(last for last, _ in listed.values()) <= PART_S[part] - FINISH_S
        for _, words in listed.values():
            for word in words:
                if word.startswith(("bench/", "recipes/", "tests/")):
                    assert (ROOT / word).exists(), words
            program = next((word for word in words if word.startswith("bench/")), "")
            if "--out" in words and Path(program).parent.name == "bench":
                module = importlib.import_module(f"bench.{Path(program).stem}")
                options = parse(module.Options, words[words.index(program) + 1 :], default=module.Options())
                options.check()
                results.append(options.out.name)
    assert len(set(results)) == len(results) > 8


@pytest.mark.parametrize("part", METHODS)
def test_a_part_of_a_method_goes_on_with_its_plan(part: str, plan: Plan) -> None:
    """All arms learn at a time, their results stay in the tree, and the last seconds are for an archive."""
    last, words = plan[part]["evidence"]
    assert words[1:3] == ["-m", "bench.evidence.run"]
    options = tyro.cli(Options, args=words[3:])
    assert options.plan == Path("bench", "evidence", f"{part}-gpu.json") and options.source is not None
    assert options.out == Path("docs", "runs", f"{part}-gpu") and 300 < options.seconds <= last - 20
    experiment = read_plan(ROOT / options.plan)
    assert options.jobs == len(experiment.arms) and not experiment.random and experiment.epochs
    assert experiment.search and len(experiment.search.rates) <= 1  # there is no time to search


def test_the_readme_lists_what_a_call_carries() -> None:
    folder = ROOT / "bench" / "gpu_day"
    table = [line.split("|") for line in (folder / "README.md").read_text().splitlines() if "| `bash" in line]
    carried = {name for row in table for name in re.findall(r"`\.gpu/(\w+)`", row[2])}
    (loop,) = re.findall(r"^for parts in (.*); do", (folder / "prepare.sh").read_text(), re.MULTILINE)
    assert carried == set(loop.replace("'", "").split())


def values(words: list[str], option: str) -> list[str]:
    """Return an option's values, which end at the next option."""
    rest = words[words.index(option) + 1 :]
    return list(takewhile(lambda word: not word.startswith("--"), rest))


def test_decoders_have_their_names(plan: Plan) -> None:
    small = {f"{part}, small": steps(part, "1") for part in MEASURE}
    named = {
        name
        for listed in (plan | small).values()
        for _, words in listed.values()
        for option in {"--decoder", "--decoders"}.intersection(words)
        for name in values(words, option)
    }
    assert named and named <= {"auto", *NAMES}


def test_every_mode_of_the_step_is_measured_and_every_program_is_in_a_part_or_by_hand(plan: Plan) -> None:
    steps = plan["a"]["step"][1], plan["g"]["compiled"][1]
    assert {mode for words in steps for mode in values(words, "--modes")} == set(get_args(Mode))
    assert all(values(words, "--graph") == ["off", "on"] for words in steps)
    words = {word for listed in plan.values() for _, command in listed.values() for word in command}
    by_hand = (ROOT / "bench" / "gpu_day" / "README.md").read_text().split("## By hand")[1]
    for path in (ROOT / "bench").glob("*.py"):
        text = path.read_text()
        if "out: Path = RUNS" in text and "__main__" in text:
            assert f"bench/{path.name}" in words or f"bench/{path.name}" in by_hand, path.name


RESULTS = {
    "a": {"step-cpu.json", "kernels-cpu.json"},
    "b": {"throughput-cpu-recipes.json", "training-cpu-lightly.json"},
    "c": set(), "d": {"training-cpu-dali.json"}, "e": {"decode-cpu.json"}, "f": {"detection-cpu.json"},
    "g": {"step-cpu-compiled.json"}, "h": {"throughput-cpu-sslpp.json", "time_to_accuracy-cpu-rotation.json"},
    "i": {"throughput-cpu-defaults.json"}, "j": {"throughput-cpu-jigsaw.json"},
}  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize("part", MEASURE)
def test_a_rehearsal_brings_back_its_results_and_is_refused_as_one(part: str, tmp_path: Path) -> None:
    process = call(
        f"bash bench/gpu_day/part.sh {part}", SMALL="1", SLOW="10", OUT=str(tmp_path / "out"),
        WORK=str(tmp_path / "work"),
    )  # fmt: skip
    assert process.returncode == 0 and not process.stderr, process.stdout + process.stderr
    (archive,) = (tmp_path / "out").iterdir()
    assert archive.name == f"results-{part}.tgz"
    with tarfile.open(archive) as files:
        files.extractall(tmp_path, filter="data")
    summary = (tmp_path / "summary.txt").read_text()
    assert process.stdout.endswith(summary) and REHEARSAL in summary
    assert f"== part {part}, cpu, commit " in summary
    assert not (tmp_path / "failed.txt").read_text()
    results = {path.name: json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")}
    assert results.keys() == RESULTS[part] | {f"gpu_day-cpu-{part}.json"}
    for result in results.values():
        validate(result)
        assert REHEARSAL in result["notes"]
    rows = results[f"gpu_day-cpu-{part}.json"]["rows"]
    assert all(row["exit"] == 0 and f"{row['measured']} " in summary for row in rows)
    assert {path.stem for path in (tmp_path / "logs").iterdir()} == {row["measured"] for row in rows}
    run_files = {"metrics.jsonl", "contact-sheet-G1.png"} if part == "f" else set()
    assert {path.name for path in (tmp_path / "runs").iterdir()} >= run_files
    with pytest.raises(ValueError, match="is a rehearsal"):
        read_archive(archive)


@pytest.mark.nightly
def test_a_rehearsal_of_methods_is_refused_as_one(tmp_path: Path) -> None:
    """SSL++ takes the labels that IIC has left."""
    for part in ("iic", "sslpp", "worth"):
        process = call(
            f"bash bench/gpu_day/part.sh {part}", SMALL="1", SLOW="10", OUT=str(tmp_path / "out"),
            WORK=str(tmp_path / "work"),
        )  # fmt: skip
        assert process.returncode == 0, process.stdout + process.stderr
        with tarfile.open(tmp_path / "out" / f"results-{part}.tgz") as files:
            files.extractall(tmp_path / part, filter="data")
        names = {path.name for path in (tmp_path / part / "experiments" / f"{part}-gpu").iterdir()}
        kept = {"iic-s0-labels.npz", "no_training-s0-labels.npz"} if part == "iic" else set[str]()
        assert names == {"results.json"} | kept
        record = (tmp_path / part / "experiments" / f"{part}-gpu" / "results.json").read_bytes()
        assert {one["seed"] for one in json.loads(record)["scores"]} == {0}
        with pytest.raises(ValueError, match="is a rehearsal"):
            check_experiment(f"{part}-gpu", {"results.json": record}, ROOT)


@pytest.mark.slow
def test_what_fails_hangs_or_comes_too_late_is_told_and_ends_no_part(tmp_path: Path) -> None:
    versions = tmp_path / "python"  # imports nothing where the machine is described
    versions.write_text(f"""#!/bin/bash
        if [ "$2" = versions ]; then echo -n cpu >"$3"; exit; fi
        exec {sys.executable} "$@"
    """)
    versions.chmod(0o755)
    script = """
        part=x; source bench/gpu_day/setup.sh
        step broken 60 bash -c 'echo FAILED tests/a.py::test_b; echo in /some/where/file.py; exit 3'
        step hangs $((SECONDS - part_started + 4)) sleep 100
        step late 1 true
        { step beside 60 bash -c 'sleep 1; echo done'; } &
        step quick 60 echo done
    """
    folders = {"OUT": str(tmp_path / "out"), "WORK": str(tmp_path / "work")}
    process = call(script, SMALL="1", PYTHON=str(versions), **folders)
    assert process.returncode == 1 and not process.stderr
    lines = process.stdout.split("FAILED tests/a.py::test_b\n")[1].splitlines()
    assert lines[0].startswith("== part x, cpu, commit") and lines[0].endswith(": 3 of 6 steps failed")
    words_by_step = {line.split()[0]: line.split()[1:] for line in lines[1:-1]}
    assert words_by_step["broken"][:2] == ["exit", "3"] and words_by_step["broken"][4:] == ["in", "file.py"]
    assert words_by_step["hangs"][0] == "cut" and 2 < float(words_by_step["hangs"][1]) < 100
    assert words_by_step["late"] == ["no", "time", "left"]
    assert all(
        words_by_step[name][0] == "ok" and words_by_step[name][3] == "done" for name in ("beside", "quick")
    )
    with tarfile.open(tmp_path / "out" / "results-x.tgz") as files:
        file = files.extractfile("./results/gpu_day-cpu-x.json")
        assert file is not None
        result = json.load(file)
    assert result["not_measured"] == [{"what": "late", "reason": "no time left"}]
    assert [row["exit"] for row in result["rows"] if row["measured"] in ("broken", "hangs")] == [3, 124]


def test_the_machine_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "OPTIONAL", ("absent_package",))  # the real ones take seconds
    assert report.versions(str(tmp_path / "gpu")) == 0
    assert (tmp_path / "gpu").read_text() == short_name(environment(report.DEVICE))
    said = capsys.readouterr().out
    assert "absent_package: ModuleNotFoundError" in said and f"{report.OURS[0]} imports" in said


def test_packed_images_are_the_same_again(tmp_path: Path) -> None:
    """In one piece or several; one that is missing, or of another packing, is told."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (2500, 6, 8, 3), np.uint8), np.arange(2500) % 10
    np.savez(tmp_path / "train.npz", images=images, labels=labels)
    np.savez(tmp_path / "test.npz", images=images[:1100], labels=labels[:1100])
    folder = tmp_path / "packed"
    paths = pack(tmp_path / "train.npz", folder, 1200)
    assert [path.name for path in paths] == [f"train-{n}of3.packed" for n in (1, 2, 3)]
    assert [unpack(path, tmp_path / "part.npz") for path in paths] == [1200, 1200, 100]
    with np.load(tmp_path / "part.npz") as arrays:
        assert (arrays["images"] == images[2400:]).all() and (arrays["labels"] == labels[2400:]).all()
    pack(tmp_path / "test.npz", folder, 1100)
    for name, num in (("train", 2500), ("test", 1100)):
        found, found_labels = _cifar10_arrays(folder, name)
        assert (found == images[:num]).all() and (found_labels == labels[:num]).all()
    (tmp_path / "data").mkdir()
    _cifar10(folder, tmp_path / "data")
    with np.load(tmp_path / "data" / "train.npz") as train, np.load(tmp_path / "data" / "search.npz") as rest:
        assert (train["images"] == images[:2400]).all() and (rest["images"] == images[2400:]).all()
    paths[1].rename(folder / "train-2of4.packed")
    with pytest.raises(ValueError, match=r"of train's pieces there is train-1of3.packed, train-2of4.packed"):
        joined(folder, "train")
    (folder / "train-2of4.packed").unlink()
    with pytest.raises(ValueError, match="of train's pieces there is train-1of3.packed, train-3of3.packed"):
        _cifar10_arrays(folder, "train")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout with a committed plan and results of it that are there already."""
    root = tmp_path / "checkout"
    plan = root / "bench" / "evidence" / "x-gpu.json"
    plan.parent.mkdir(parents=True)
    plan.write_text("{}")
    git = "git -c user.name=a -c user.email=a@b.example"
    assert not call(f"cd {root} && git init -q && git add . && {git} commit -qm one").returncode
    put_experiment(brought(root), root / "docs" / "runs" / "x-gpu")
    return root


def brought(root: Path, **changes: Any) -> dict[str, bytes]:
    """Return what a part brings back of a plan."""
    plan = root / "bench" / "evidence" / "x-gpu.json"
    entry = {"command": "train", "kept": ["a-s0-labels.npz"]}
    record = {
        "title": "Title", "plan_commit": _commit_of(plan), "plan_sha256": sha256_of_file(plan), "search": [],
        "training": [entry], "scores": [{"command": "score"}], "beside": [],
    }  # fmt: skip
    return {"results.json": json.dumps(record | changes).encode(), "a-s0-labels.npz": b"labels"}


def test_an_experiment_comes_into_the_record(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = brought(checkout, scores=[{"command": "score"}, {"command": "another"}])
    check_experiment("x-gpu", more, checkout)
    put_experiment(more, checkout / "docs" / "runs" / "x-gpu")
    assert {path.name: path.read_bytes() for path in (checkout / "docs" / "runs" / "x-gpu").iterdir()} == more
    with pytest.raises(ValueError, match="lacks 1 entries of"):
        check_experiment("x-gpu", brought(checkout), checkout)
    without = {"results.json": more["results.json"]}
    with pytest.raises(ValueError, match="its trainings keep"):
        check_experiment("x-gpu", without, checkout)
    plan = checkout / "bench" / "evidence" / "x-gpu.json"
    plan.write_text('{"seeds": []}')
    assert _commit_of(plan) is None
    with pytest.raises(ValueError, match="is of another bench/evidence/x-gpu.json than is here"):
        check_experiment("x-gpu", more, checkout)
    monkeypatch.setenv("PATH", "")  # as on a machine without git
    assert _commit_of(plan) is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"plan_commit": None}, "was not committed before it was run"),
        ({"plan_commit": "0" * 12}, "was not committed before it was run"),
        ({"title": f"{REHEARSAL}; Title"}, "is a rehearsal"),
        ({"training": [{}]}, "has no results of a plan"),
    ],
)  # fmt: skip
def test_an_experiment_that_shows_nothing_is_refused(
    checkout: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        check_experiment("x-gpu", brought(checkout, **changes), checkout)
