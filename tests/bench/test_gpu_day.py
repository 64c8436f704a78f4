"""bench/gpu_day/: its parts fit, rehearse on a CPU, and lose no more than the steps that hang or fail.

Packed images are restored unchanged.
"""

import importlib
import json
import os
import shlex
import subprocess
import sys
import tarfile
from itertools import takewhile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from bench.gpu_day import report
from bench.pack_images import pack, unpack
from bench.performance import read_archive
from bench.schema import REHEARSAL, environment, short_name, validate
from bench.step import Mode
from fastpsl.pipelines.decoders.choose import NAMES
from fastpsl.scripts.command_line import parse

ROOT = Path(__file__).resolve().parents[2]
PART_S, FINISH_S = 240, 15
PARTS = ("a", "b", "c", "d", "e", "f", "g", "h")


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
    return {part: steps(part) for part in PARTS}


@pytest.mark.slow
def test_parts_fit_four_minutes_and_their_commands_are_understood(plan: Plan) -> None:
    results = []
    for listed in plan.values():
        assert max(last for last, _ in listed.values()) <= PART_S - FINISH_S
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


def values(words: list[str], option: str) -> list[str]:
    """Return an option's values, which end at the next option."""
    rest = words[words.index(option) + 1 :]
    return list(takewhile(lambda word: not word.startswith("--"), rest))


def test_decoders_have_their_names(plan: Plan) -> None:
    small = {f"{part}, small": steps(part, "1") for part in PARTS}
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
    "b": {"throughput-cpu-recipes.json", "throughput-cpu-sslpp.json", "training-cpu-lightly.json"},
    "c": set(), "d": {"training-cpu-dali.json"}, "e": {"decode-cpu.json"}, "f": {"detection-cpu.json"},
    "g": {"step-cpu-compiled.json"}, "h": {"time_to_accuracy-cpu-rotation.json"},
}  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize("part", PARTS)
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


@pytest.mark.parametrize("num", [None, 1030])
def test_packed_images_are_the_same_again(num: int | None, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (1100, 6, 8, 3), np.uint8), random.integers(0, 9, 1100)
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    num_packed = num or 1100
    assert pack(tmp_path / "a.npz", tmp_path / "a.packed", num) == num_packed
    assert unpack(tmp_path / "a.packed", tmp_path / "b.npz") == num_packed
    with np.load(tmp_path / "b.npz") as arrays:
        assert (arrays["images"] == images[:num_packed]).all()
        assert (arrays["labels"] == labels[:num_packed]).all()
