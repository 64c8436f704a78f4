"""bench/gpu_day/: its parts fit, rehearse on a CPU, and lose no more than the steps that hang or fail.

Packed images are restored unchanged, and experiments come back whole or not at all.
"""

import importlib
import json
import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro

from bench.archives import check_experiment, put_experiment, read_archive
from bench.evidence.data import _cifar10, _cifar10_arrays
from bench.evidence.plan import read_plan
from bench.evidence.results import _commit_of
from bench.evidence.run import Options
from bench.pack_images import joined, pack, unpack
from bench.schema import REHEARSAL, validate
from fastpsl.files.digest import sha256_of_file
from fastpsl.scripts.command_line import parse

ROOT = Path(__file__).resolve().parents[2]
FINISH_S = 15
MEASURE, METHODS = "abcdefghij", ("uic", "iic", "sslpp", "psl", "deepcluster", "worth")
PART_S = dict.fromkeys(MEASURE, 240) | dict.fromkeys(METHODS, 420)


def call(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=3600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **environment},
    )  # fmt: skip


def steps(part: str) -> dict[str, tuple[int, list[str]]]:
    """Return name → (last second, command) of a part."""
    process = call(f"bash bench/gpu_day/part.sh {part}", LIST="1", SMALL="")
    assert process.returncode == 0 and not process.stderr
    lines = (line.split("\t") for line in process.stdout.splitlines())
    return {name: (int(last), shlex.split(command)) for name, last, command in lines}


@pytest.mark.slow
def test_parts_fit_their_minutes_and_their_commands_are_understood() -> None:
    results = []
    for part in PART_S:
        listed = steps(part)
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
def test_a_part_of_a_method_goes_on_with_its_plan(part: str) -> None:
    """All arms learn at a time, their results stay in the tree, and the last seconds are for an archive."""
    last, words = steps(part)["evidence"]
    assert words[1:3] == ["-m", "bench.evidence.run"]
    options = tyro.cli(Options, args=words[3:])
    assert options.plan == Path("bench", "evidence", f"{part}-gpu.json") and options.source is not None
    assert options.out == Path("docs", "runs", f"{part}-gpu") and 300 < options.seconds <= last - 20
    experiment = read_plan(ROOT / options.plan)
    assert options.jobs == len(experiment.arms) and not experiment.random and experiment.epochs
    assert experiment.search and len(experiment.search.rates) <= 1  # there is no time to search


@pytest.mark.nightly
@pytest.mark.parametrize("parts", [*MEASURE, ("iic", "sslpp", "worth")])  # SSL++ takes IIC's labels
def test_a_rehearsal_brings_back_results_and_is_refused_as_one(
    parts: str | tuple[str, ...], tmp_path: Path
) -> None:
    folders = {"OUT": str(tmp_path / "out"), "WORK": str(tmp_path / "work")}
    for part in parts:
        process = call(f"bash bench/gpu_day/part.sh {part}", SMALL="1", SLOW="10", **folders)
        assert process.returncode == 0 and not process.stderr, process.stdout + process.stderr
        archive, found = tmp_path / "out" / f"results-{part}.tgz", tmp_path / part
        with tarfile.open(archive) as files:
            files.extractall(found, filter="data")
        results = {path.name: json.loads(path.read_text()) for path in found.glob("results/*.json")}
        assert len(results) > (part in MEASURE and part != "c"), "a result beside that of the part itself"
        for result in results.values():
            validate(result)
            assert REHEARSAL in result["notes"]
        assert all(row["exit"] == 0 for row in results[f"gpu_day-cpu-{part}.json"]["rows"])
        if part in MEASURE:
            with pytest.raises(ValueError, match="is a rehearsal"):
                read_archive(archive)
        else:
            record = (found / "experiments" / f"{part}-gpu" / "results.json").read_bytes()
            assert {one["seed"] for one in json.loads(record)["scores"]} == {0}
            with pytest.raises(ValueError, match="is a rehearsal"):
                check_experiment(f"{part}-gpu", {"results.json": record}, ROOT)


@pytest.mark.slow
def test_what_fails_hangs_or_comes_too_late_ends_no_part(tmp_path: Path) -> None:
    versions = tmp_path / "python"  # imports nothing where the machine is described
    versions.write_text(f"""#!/bin/bash
        if [ "$2" = versions ]; then echo -n cpu >"$3"; exit; fi
        exec {sys.executable} "$@"
    """)
    versions.chmod(0o755)
    script = """
        part=x; source bench/gpu_day/setup.sh
        step broken 60 bash -c 'exit 3'
        step hangs $((SECONDS - part_started + 4)) sleep 100
        step late 1 true
        { step beside 60 bash -c 'sleep 1; echo done'; } &
        step quick 60 echo done
    """
    folders = {"OUT": str(tmp_path / "out"), "WORK": str(tmp_path / "work")}
    process = call(script, SMALL="1", PYTHON=str(versions), **folders)
    assert process.returncode == 1 and ": 3 of 6 steps failed" in process.stdout
    with tarfile.open(tmp_path / "out" / "results-x.tgz") as files:
        file = files.extractfile("./results/gpu_day-cpu-x.json")
        assert file is not None
        result = json.load(file)
    assert result["not_measured"] == [{"what": "late", "reason": "no time left"}]
    exits = {row["measured"]: row["exit"] for row in result["rows"]}
    assert exits | {"broken": 3, "hangs": 124, "beside": 0, "quick": 0} == exits


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
